"""How the stores find entries: by a range of an index, and nobody else's."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert, text

from models.admin.key_values import KeyValue
from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor, PageRequest
from models.users.roles import Role, Scope
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueListing, KeyValueNamespace
from resolvers.context import Context, Viewer
from tests.conftest import Client, make_user
from tests.support.stores.query_plans import Plans, explained

MANY, OTHERS = 2000, 60  # entries of an account, and accounts with a few


@pytest.fixture
async def plans(ada: Client) -> AsyncIterator[Plans]:
    """An account with many entries on three levels, among others with some."""
    world, given = ada.world, []
    owners = [(ada.user.id, MANY)]
    owners += [((await make_user(world, f"n{n}")).id, 100) for n in range(OTHERS)]
    for owner, many in owners:
        for n in range(many):
            level = ("", f"a{n % 7}/", f"a{n % 7}/b{n % 11}/")[n % 3]
            one = {"id": world.new_id(), "stream_id": owner, "store": "default", "level": level}
            given.append({**one, "key": f"{level}{n}", "value": "x", "version": n, "size": 9})
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(KeyValue), given)
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE key_values"))
    with explained(world) as made:
        yield made


KEY, LEVEL = "uq_key_values_key", "ix_key_values_level"


def good(plan: str, *indexes: str) -> None:
    """It reads one of these indexes, sorts nothing whole, and looks at nobody else's."""
    whole = [line for line in plan.splitlines() if "Incremental Sort" not in line]
    assert any(index in plan for index in indexes), plan
    assert "(stream_id=? AND store=?" in plan or "Index Cond: ((stream_id" in plan, plan
    assert "SCAN key_values" not in plan, plan
    assert "Seq Scan on key_values" not in plan, plan
    assert not any("TEMP B-TREE" in line or "Sort  (" in line for line in whole), plan


def viewers(world: Environment, ada: int) -> list[Context]:
    """Who reads entries: their owner, and an administrator."""
    every = frozenset({Scope.MASTER})
    return [
        Context(world, Viewer(ada, Role.USER, every)),
        Context(world, Viewer(0, Role.ROOT, every)),
    ]


async def test_a_page_is_a_range_of_an_index_both_ways(ada: Client, plans: Plans) -> None:
    within = KeyValueNamespace(ada.user.id)
    asked: list[tuple[KeyValueListing, tuple[str, ...]]] = [
        (KeyValueListing(within, is_recursive=True), (KEY,)),
        (KeyValueListing(within, "a3/", is_recursive=True), (KEY,)),
        (KeyValueListing(within), (LEVEL,)),
        (KeyValueListing(within, "a3/"), (LEVEL,)),
        (KeyValueListing(within, "a3/b4/2"), (KEY, LEVEL)),  # few either way
    ]
    for ctx in viewers(ada.world, ada.user.id):
        for listing, indexes in asked:
            whole = await key_values.read_entry_page(ctx, listing, PageRequest("x", 250), {"value"})
            row = whole.rows[len(whole.rows) // 2]
            at = Cursor("x", row.key, row.id)
            for ask in (
                PageRequest("x"),
                PageRequest("x", is_backward=True),
                PageRequest("x", 9, at),
                PageRequest("x", 9, at, is_backward=True),
            ):
                work = key_values.read_entry_page(ctx, listing, ask, {"value"}, with_values=False)
                good(await plans.of(work, "key_values"), *indexes)


async def test_entries_are_found_by_their_keys(ada: Client, plans: Plans) -> None:
    for ctx in viewers(ada.world, ada.user.id):
        within = KeyValueNamespace(ada.user.id)
        good(await plans.of(key_values.find_entry(ctx, within, "a1/1"), "key_values"), KEY)
        some = [(within, f"a{n % 7}/{n}") for n in range(0, 600, 3)]
        good(await plans.of(key_values.load_entries_by_key(ctx, some), "key_values"), KEY, LEVEL)
        exact = key_values.read_entry_page(
            ctx, KeyValueListing(within, "a1/1", is_exact=True), PageRequest("x"), {"value"}
        )
        assert KEY in await plans.of(exact, "key_values")


async def test_what_is_below_a_key_is_removed_by_a_range(ada: Client, plans: Plans) -> None:
    (ctx, _), within = viewers(ada.world, ada.user.id), KeyValueNamespace(ada.user.id)
    plan = await plans.of(
        key_values.delete_entries(ctx, within, "a3", recursive=True), "key_values"
    )
    good(plan, KEY)
    assert "key>? AND key<?" in plan or "(key)::text >= 'a3/'" in plan, plan
