"""Query plans of key-value entries: an index range within one account."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert, text

from models.admin.key_values import KeyValueEntry
from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor, PageRequest
from models.users.roles import Role, Scope
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueListConditions, KeyValueNamespace
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_user
from tests.support.stores.query_plans import QueryPlanRecorder, record_query_plans

ENTRY_COUNT, OTHER_USER_COUNT = 2000, 60  # entries of one account, and accounts with fewer entries


@pytest.fixture
async def explained_plans(ada: GraphQLClient) -> AsyncIterator[QueryPlanRecorder]:
    """Yield a plan recorder. One account has many entries, and other accounts have some."""
    environment, rows = ada.environment, []
    owners = [(ada.user.id, ENTRY_COUNT)]
    owners += [((await make_user(environment, f"n{n}")).id, 100) for n in range(OTHER_USER_COUNT)]
    for owner_id, count in owners:
        for n in range(count):
            level = ("", f"a{n % 7}/", f"a{n % 7}/b{n % 11}/")[n % 3]
            row = {
                "id": environment.new_id(),
                "stream_id": owner_id,
                "store": "default",
                "level": level,
            }
            rows.append({**row, "key": f"{level}{n}", "value": "x", "version": n, "size": 9})
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(KeyValueEntry), rows)
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE key_value_entries"))
    with record_query_plans(environment) as recorder:
        yield recorder


KEY_INDEX, LEVEL_INDEX = "uq_key_value_entries_key", "ix_key_value_entries_level"


def assert_index_range(plan: str, *indexes: str) -> None:
    """Check that the plan reads one of the indexes, without a full sort, within one account."""
    other_lines = [line for line in plan.splitlines() if "Incremental Sort" not in line]
    assert any(index in plan for index in indexes), plan
    assert "(stream_id=? AND store=?" in plan or "Index Cond: ((stream_id" in plan, plan
    assert "SCAN key_values" not in plan, plan
    assert "Seq Scan on key_values" not in plan, plan
    assert not any("TEMP B-TREE" in line or "Sort  (" in line for line in other_lines), plan


def make_contexts(environment: Environment, owner_id: int) -> list[Context]:
    """Return the contexts of the owner and of an administrator."""
    all_scopes = frozenset({Scope.FULL})
    return [
        Context(environment, Viewer(owner_id, Role.USER, all_scopes)),
        Context(environment, Viewer(0, Role.ROOT, all_scopes)),
    ]


async def test_page_reads_an_index_range_in_both_directions(
    ada: GraphQLClient, explained_plans: QueryPlanRecorder
) -> None:
    namespace = KeyValueNamespace(ada.user.id)
    cases: list[tuple[KeyValueListConditions, tuple[str, ...]]] = [
        (KeyValueListConditions(namespace, is_recursive=True), (KEY_INDEX,)),
        (KeyValueListConditions(namespace, "a3/", is_recursive=True), (KEY_INDEX,)),
        (KeyValueListConditions(namespace), (LEVEL_INDEX,)),
        (KeyValueListConditions(namespace, "a3/"), (LEVEL_INDEX,)),
        # only few rows with either index
        (KeyValueListConditions(namespace, "a3/b4/2"), (KEY_INDEX, LEVEL_INDEX)),
    ]
    for ctx in make_contexts(ada.environment, ada.user.id):
        for conditions, indexes in cases:
            page = await key_values.read_visible_key_value_page(
                ctx, conditions, PageRequest("x", 250), {"value"}
            )
            row = page.rows[len(page.rows) // 2]
            cursor = Cursor("x", row.key, row.id)
            for page_request in (
                PageRequest("x"),
                PageRequest("x", is_backward=True),
                PageRequest("x", 9, cursor),
                PageRequest("x", 9, cursor, is_backward=True),
            ):
                query = key_values.read_visible_key_value_page(
                    ctx, conditions, page_request, {"value"}, with_values=False
                )
                assert_index_range(
                    await explained_plans.explain_select(query, "key_value_entries"), *indexes
                )


async def test_entries_are_found_by_the_key_index(
    ada: GraphQLClient, explained_plans: QueryPlanRecorder
) -> None:
    for ctx in make_contexts(ada.environment, ada.user.id):
        namespace = KeyValueNamespace(ada.user.id)
        assert_index_range(
            await explained_plans.explain_select(
                key_values.find_entry(ctx, namespace, "a1/1"), "key_value_entries"
            ),
            KEY_INDEX,
        )
        keys = [(namespace, f"a{n % 7}/{n}") for n in range(0, 600, 3)]
        assert_index_range(
            await explained_plans.explain_select(
                key_values.load_visible_entries_by_key(ctx, keys), "key_value_entries"
            ),
            KEY_INDEX,
            LEVEL_INDEX,
        )
        query = key_values.read_visible_key_value_page(
            ctx,
            KeyValueListConditions(namespace, "a1/1", is_exact=True),
            PageRequest("x"),
            {"value"},
        )
        assert KEY_INDEX in await explained_plans.explain_select(query, "key_value_entries")


async def test_recursive_delete_uses_a_key_range(
    ada: GraphQLClient, explained_plans: QueryPlanRecorder
) -> None:
    (ctx, _), namespace = (
        make_contexts(ada.environment, ada.user.id),
        KeyValueNamespace(ada.user.id),
    )
    plan = await explained_plans.explain_select(
        key_values.delete_key_values(ctx, namespace, "a3", recursive=True), "key_value_entries"
    )
    assert_index_range(plan, KEY_INDEX)
    assert "key>? AND key<?" in plan or "(key)::text >= 'a3/'" in plan, plan
