"""Test which addresses a user can send as, for one address and for many."""

from random import Random
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col

from mail.recipients import address_resolution
from models.addresses.tables import Address, AddressKind
from models.errors import Forbidden, NotFound
from models.runtime.environment import Environment
from resolvers.submission import composition
from resolvers.submission.sender_authorization import (
    read_sender_grants,
    require_permitted_sender,
    resolve_active_addresses,
)
from tests.conftest import GraphQLClient, client_context
from tests.support.accounts.address_rows import add_addresses, add_domain
from tests.support.accounts.identity_operations import (
    add_address,
    change_address,
    send_message,
    set_allowed_senders,
)

FORWARD = AddressKind.FORWARD
LOCAL_PART_CHARS = "ab"
SENDERS = [
    "ada@example.org", "a.da+x@example.org", "bob@example.org", "nobody@example.org",
    "any@own.example", "any@also.example", "off@own.example", "quiet@own.example",
    "team@own.example", "t.eam+x@also.example", "list@own.example", "mute@own.example",
    "held@own.example", "spam@own.example", "every@own.example", "x@example.net",
    "ada@gone.example",
]  # fmt: skip


async def test_batch_resolution_equals_single_resolution(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_domain(environment, "own.example", "alias.example", "off:gone.example")
    await add_domain(environment, "other.example", active=False)
    random, ctx = Random(7), client_context(ada)  # noqa: S311 - reproducible
    for _ in range(25):
        async with environment.write_session() as session:
            await session.exec(delete(Address).where(col(Address.user_id).is_(None)))
        patterns = set()
        for _ in range(random.randrange(12)):
            local = "".join(random.choices(LOCAL_PART_CHARS, k=random.randint(1, 4)))
            pattern = random.choice(["{}", "{}", "{}*", "*{}", "*"]).format(local)
            name = random.choice(["own.example", "other.example", "example.org", "*"])
            patterns.add(f"{pattern}@{name}")
        await add_addresses(
            environment,
            *(
                random.choice(["", "", "off:", "old:"]) + candidate
                for candidate in sorted(patterns)
            ),
        )
        senders = [
            "".join(random.choices([*LOCAL_PART_CHARS, "."], k=random.randint(1, 4))) + f"+x@{name}"
            for name in ("own.example", "alias.example", "gone.example", "far.example")
            for _ in range(6)
        ]
        resolved = await resolve_active_addresses(ctx, [*senders, "", "+x@own.example"])
        for candidate, row in resolved.items():
            try:
                expected = (
                    await address_resolution.require_receiving_address_row(environment, candidate)
                ).id
            except NotFound:
                expected = None
            assert (row and row.id) == expected, (patterns, candidate)


@pytest.fixture
async def domains_with_addresses(ada: GraphQLClient, environment: Environment) -> Environment:
    """Domains with addresses of all kinds. Ada can send as some of them."""
    await add_domain(environment, "own.example", "also.example", "off:gone.example")
    owner: dict[str, Any] = {"user_id": ada.user.id}
    await add_address(environment, "*@own.example", **owner)
    await add_address(environment, "off@own.example", active=False, **owner)
    await add_address(environment, "quiet@own.example", send_as=False, **owner)
    for local, targets in (
        ("team", ["eve@example.net", "A.DA+x@Example.org"]),
        ("list", ["bob@example.org", "https://ada@example.org/", "adal@example.org"]),
    ):
        await add_address(environment, f"{local}@own.example", kind=FORWARD, forward_to=targets)
    mute = {"kind": FORWARD, "forward_to": ["ada@example.org"]}
    await add_address(environment, "mute@own.example", send_as=False, **mute)
    await add_address(environment, "held@own.example", kind=FORWARD, forward_to=["any@own.example"])
    await add_address(environment, "spam@own.example", kind=AddressKind.DISCARD, **owner)
    await add_addresses(environment, "every@*", **mute)
    await set_allowed_senders(ada, "*@example.net")
    return environment


@pytest.mark.usefixtures("bob")
async def test_single_and_batch_sender_checks_agree(
    ada: GraphQLClient, domains_with_addresses: Environment
) -> None:
    assert domains_with_addresses
    ctx = client_context(ada)
    account = await composition.read_account(ctx, ada.user.id)
    allowed = []
    for sender in SENDERS:
        try:
            await require_permitted_sender(ctx, account, sender, ["from"])
        except Forbidden:
            continue
        allowed.append(sender)
    grants = await read_sender_grants(ctx, [(account, sender) for sender in SENDERS])
    assert [sender for sender, grant in zip(SENDERS, grants, strict=True) if grant] == allowed
    assert allowed == [
        "ada@example.org", "a.da+x@example.org", "any@own.example", "any@also.example",
        "team@own.example", "t.eam+x@also.example", "every@own.example", "x@example.net",
    ]  # fmt: skip


async def test_forward_address_is_sender_while_it_targets_user(
    ada: GraphQLClient, environment: Environment
) -> None:
    address_id = await add_address(
        environment, "team@example.org", kind=FORWARD, forward_to=["ada@example.org"]
    )
    arguments = {"from": {"address": "team@example.org"}}
    assert (await send_message(ada, **arguments))["errors"] == []
    for values in ({"forward_to": ["bob@example.org"]}, {"active": False}, {"send_as": False}):
        await change_address(environment, address_id, **values)
        (error,) = (await send_message(ada, **arguments))["errors"]
        assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["from"])
        await change_address(
            environment, address_id, forward_to=["ada@example.org"], active=True, send_as=True
        )


async def test_sender_check_statement_count_is_independent_of_senders(
    ada: GraphQLClient, domains_with_addresses: Environment, statements: list[str]
) -> None:
    assert domains_with_addresses
    ctx = client_context(ada)
    account = await composition.read_account(ctx, ada.user.id)
    counts = []
    for senders in (["team@own.example"], SENDERS * 5):
        del statements[:]
        await read_sender_grants(ctx, [(account, sender) for sender in senders])
        counts.append(len(statements))
    assert counts[0] <= counts[1] <= 4
