"""Who may send as an address: alike for one and for many, and as mail would be resolved."""

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
    authorize_sender,
    read_sender_grants,
    resolve_active_addresses,
)
from tests.conftest import Client, context
from tests.support.accounts.address_rows import add_addresses, add_domain
from tests.support.accounts.identity_operations import address, readdress, sent, whitelist

FORWARD = AddressKind.FORWARD
LETTERS = "ab"
WAYS = [
    "ada@example.org", "a.da+x@example.org", "bob@example.org", "nobody@example.org",
    "any@own.example", "any@also.example", "off@own.example", "quiet@own.example",
    "team@own.example", "t.eam+x@also.example", "list@own.example", "mute@own.example",
    "held@own.example", "spam@own.example", "every@own.example", "x@example.net",
    "ada@gone.example",
]  # fmt: skip


async def test_many_are_resolved_as_each_of_them_is(ada: Client, world: Environment) -> None:
    await add_domain(world, "own.example", "alias.example", "off:gone.example")
    await add_domain(world, "other.example", active=False)
    dice, ctx = Random(7), context(ada)  # noqa: S311 - the same each time
    for _ in range(25):
        async with world.write_session() as session:
            await session.exec(delete(Address).where(col(Address.user_id).is_(None)))
        written = set()
        for _ in range(dice.randrange(12)):
            local = "".join(dice.choices(LETTERS, k=dice.randint(1, 4)))
            pattern = dice.choice(["{}", "{}", "{}*", "*{}", "*"]).format(local)
            name = dice.choice(["own.example", "other.example", "example.org", "*"])
            written.add(f"{pattern}@{name}")
        await add_addresses(
            world, *(dice.choice(["", "", "off:", "old:"]) + one for one in sorted(written))
        )
        asked = [
            "".join(dice.choices([*LETTERS, "."], k=dice.randint(1, 4))) + f"+x@{name}"
            for name in ("own.example", "alias.example", "gone.example", "far.example")
            for _ in range(6)
        ]
        found = await resolve_active_addresses(ctx, [*asked, "", "+x@own.example"])
        for one, row in found.items():
            try:
                expected = (await address_resolution.resolve_address(world, one)).id
            except NotFound:
                expected = None
            assert (row and row.id) == expected, (written, one)


@pytest.fixture
async def town(ada: Client, world: Environment) -> Environment:
    """Domains with addresses of all kinds, some of which ada may send as."""
    await add_domain(world, "own.example", "also.example", "off:gone.example")
    mine: dict[str, Any] = {"user_id": ada.user.id}
    await address(world, "*@own.example", **mine)
    await address(world, "off@own.example", active=False, **mine)
    await address(world, "quiet@own.example", send_as=False, **mine)
    for local, targets in (
        ("team", ["eve@example.net", "A.DA+x@Example.org"]),
        ("list", ["bob@example.org", "https://ada@example.org/", "adal@example.org"]),
    ):
        await address(world, f"{local}@own.example", kind=FORWARD, targets=targets)
    mute = {"kind": FORWARD, "targets": ["ada@example.org"]}
    await address(world, "mute@own.example", send_as=False, **mute)
    await address(world, "held@own.example", kind=FORWARD, targets=["any@own.example"])
    await address(world, "spam@own.example", kind=AddressKind.DISCARD, **mine)
    await add_addresses(world, "every@*", **mute)
    await whitelist(ada, "*@example.net")
    return world


@pytest.mark.usefixtures("bob")
async def test_one_rule_holds_for_one_and_for_many(ada: Client, town: Environment) -> None:
    assert town
    ctx = context(ada)
    account = await composition.read_account(ctx, ada.user.id)
    allowed = []
    for one in WAYS:
        try:
            await authorize_sender(ctx, account, one, ["from"])
        except Forbidden:
            continue
        allowed.append(one)
    found = await read_sender_grants(ctx, [(account, one) for one in WAYS])
    assert [one for one, grant in zip(WAYS, found, strict=True) if grant] == allowed
    assert allowed == [
        "ada@example.org", "a.da+x@example.org", "any@own.example", "any@also.example",
        "team@own.example", "t.eam+x@also.example", "every@own.example", "x@example.net",
    ]  # fmt: skip


async def test_a_forward_is_sent_as_while_it_names_one(ada: Client, world: Environment) -> None:
    key = await address(world, "team@example.org", kind=FORWARD, targets=["ada@example.org"])
    given = {"from": {"address": "team@example.org"}}
    assert (await sent(ada, **given))["errors"] == []
    for values in ({"targets": ["bob@example.org"]}, {"active": False}, {"send_as": False}):
        await readdress(world, key, **values)
        (error,) = (await sent(ada, **given))["errors"]
        assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["from"])
        await readdress(world, key, targets=["ada@example.org"], active=True, send_as=True)


async def test_many_cost_no_more_statements_than_one(
    ada: Client, town: Environment, statements: list[str]
) -> None:
    assert town
    ctx = context(ada)
    account = await composition.read_account(ctx, ada.user.id)
    costs = []
    for some in (["team@own.example"], WAYS * 5):
        del statements[:]
        await read_sender_grants(ctx, [(account, one) for one in some])
        costs.append(len(statements))
    assert costs[0] <= costs[1] <= 4
