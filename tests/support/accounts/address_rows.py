"""Rows of domains and addresses that are stored without a request."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.runtime.environment import Environment

CREATED_AT = datetime(2030, 1, 1, tzinfo=UTC)


async def add_addresses(environment: Environment, *addresses: str, **columns: Any) -> None:
    """Add a row for each address; `off:` before an address makes it inactive, `old:` expired."""
    domains = await domain_id_by_name(environment)
    user_id = columns.pop("user_id", None)
    async with environment.write_session() as session:
        for marked_address in addresses:
            state, _, address = marked_address.rpartition(":")
            local, _, domain = address.partition("@")
            row = Address(
                id=environment.new_id(),
                local=local,
                domain_id=None if domain == "*" else domains[domain],
                display_address=address,
                user_id=user_id,
                active=state != "off",
                expires_at=CREATED_AT - timedelta(seconds=1) if state == "old" else None,
                created_at=CREATED_AT,
                updated_at=CREATED_AT,
                **columns,
            )
            session.add(row)


async def domain_id_by_name(environment: Environment) -> dict[str, int]:
    """The ids of all domains by name."""
    rows = await environment.database.read(select(col(Domain.id), col(Domain.name)))
    return {row.name: row.id for row in rows}


async def add_domain(environment: Environment, name: str, *aliases: str, **columns: Any) -> None:
    """Add a domain and its aliases; `off:` before an alias makes it inactive."""
    async with environment.write_session() as session:
        domain = Domain(
            id=environment.new_id(),
            name=name,
            created_at=CREATED_AT,
            updated_at=CREATED_AT,
            **columns,
        )
        session.add(domain)
        await session.flush()
        for alias in aliases:
            row = DomainAlias(
                id=environment.new_id(),
                alias=alias.removeprefix("off:"),
                domain_id=domain.id,
                active=not alias.startswith("off:"),
                created_at=CREATED_AT,
            )
            session.add(row)
