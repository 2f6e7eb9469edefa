"""The selects of an operation end at its deadline, or when its client leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from graph.schema import schema
from models.runtime.environment import Environment
from models.store.sqlite.reader import THREAD_COUNT
from tests.conftest import GraphQLClient
from tests.support.loop_clock import LoopClock
from tests.support.time_limits import HANG_SECONDS

DEADLINE = 1000.0  # seconds, which pass only by the clock of the test
ENDLESS_ROWS = {
    "sqlite": "(WITH RECURSIVE n (v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n) "
    "SELECT count(*) AS v FROM n)",
    "postgresql": "(SELECT pg_sleep(86400) AS v)",
}
DOCUMENTS = {  # by the fixture of the client; the select is that of a dataloader or of a resolver
    # a filtered list: SQLite reads a list of all filters without a thread, since it is short
    "ada": "{ user { filters(first: 2, filter: {active: true}) { totalCount } } }",
    "root": "{ filters(first: 2) { totalCount } }",
}
RUNNING = """SELECT count(*) FROM pg_stat_activity WHERE state = 'active'
    AND query LIKE '%FROM filters%' AND pid <> pg_backend_pid() AND datname = current_database()"""


@pytest.fixture
async def endless_filters(environment: Environment) -> AsyncIterator[None]:
    """Let every select of filters run without an end."""
    database = environment.database
    rows = ENDLESS_ROWS[database.dialect]
    async with database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE filters RENAME TO real_filters"))
        await connection.execute(text(
            f"CREATE VIEW filters AS SELECT real_filters.* FROM {rows} endless "  # noqa: S608
            "LEFT JOIN real_filters ON endless.v IS NOT NULL"
        ))  # fmt: skip
    yield
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP VIEW filters"))
        await connection.execute(text("ALTER TABLE real_filters RENAME TO filters"))


@asynccontextmanager
async def endless_operations(
    client: GraphQLClient, statements: list[str], document: str, count: int
) -> AsyncGenerator[list[asyncio.Task[Any]]]:
    """Start operations, and wait until the first one reads filters. Cancel them after the block."""
    tasks = [asyncio.create_task(client.execute(document)) for _ in range(count)]
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not any("FROM filters" in sql for sql in statements):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def assert_database_is_free(client: GraphQLClient) -> None:
    """Assert that no thread and no connection works for an operation that has ended."""
    database: Any = client.environment.database
    async with asyncio.timeout(HANG_SECONDS):
        if database.dialect == "sqlite":
            reads = [database.read(text("SELECT 1")) for _ in range(2 * THREAD_COUNT)]
            await asyncio.gather(*reads)
        else:
            while (await database.read(text(RUNNING)))[0][0]:  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.02)
    assert (await client("{ viewer { __typename } }"))["viewer"]["__typename"] == "Viewer"


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.usefixtures("endless_filters")
async def test_select_ends_at_the_deadline(
    ada: GraphQLClient,
    root: GraphQLClient,
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    client = {"ada": ada, "root": root}[name]
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=DEADLINE))
    clock = LoopClock()
    async with endless_operations(client, statements, DOCUMENTS[name], 8) as tasks:
        clock.advance(2 * DEADLINE)
        async with asyncio.timeout(2 * DEADLINE):
            answers = await asyncio.gather(*tasks)
    codes = {answer["errors"][0]["extensions"]["code"] for answer in answers}
    assert codes == {"DEADLINE_EXCEEDED"}
    await assert_database_is_free(client)


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.usefixtures("endless_filters")
async def test_select_ends_when_the_client_leaves(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str], name: str
) -> None:
    client = {"ada": ada, "root": root}[name]
    async with endless_operations(client, statements, DOCUMENTS[name], 8):
        pass
    await assert_database_is_free(client)


@pytest.mark.usefixtures("endless_filters")
async def test_slow_lists_of_one_user_do_not_delay_another(
    ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    async with endless_operations(ada, statements, DOCUMENTS["ada"], 16) as tasks:
        async with asyncio.timeout(HANG_SECONDS):
            for _ in range(10):
                answer = await bob("{ user { labels { id } username } }")
                assert answer["user"]["username"] == "bob"
        assert not any(task.done() for task in tasks)
    await assert_database_is_free(ada)
