"""Addresses and accounts that forward their mail."""

from dataclasses import replace
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import try_update_users

FORWARD_TARGET = "dave@far.example"
_DOMAIN_IDS = select(col(Address.domain_id)).where(col(Address.domain_id).is_not(None)).distinct()


async def set_account_forwarding(client: GraphQLClient, *targets: str, **values: Any) -> None:
    """Set the forwarding targets of the main address of a user."""
    assert (await try_update_users(client, forwardTo=list(targets), **values))[1] == []


async def add_forwarding_address(
    environment: Environment, name: str, *targets: str, **columns: Any
) -> int:
    """Add an address of example.org without a user, and return its id."""
    (domain_id,) = {row.domain_id for row in await environment.database.read(_DOMAIN_IDS)}
    kind = AddressKind.FORWARD if targets else AddressKind.DISCARD
    address = Address(
        id=environment.new_id(),
        local=name,
        domain_id=domain_id,
        display_address=f"{name}@example.org",
        kind=kind,
        forward_to=list(targets),
        created_at=environment.now(),
        updated_at=environment.now(),
        **columns,
    )
    address_id = address.id
    async with environment.write_session() as session:
        session.add(address)
        counters = {"address_count": Domain.address_count + 1}
        await session.exec(update(Domain).where(col(Domain.id) == domain_id).values(**counters))
    return address_id


def allow_private_targets(environment: Environment) -> Environment:
    """Allow forwarding to hosts in private networks."""
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, forwards_allow_private_networks=True), 1)
    )
    return environment
