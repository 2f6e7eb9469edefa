"""Planner statistics of SQLite: every connection uses them, and housekeeping refreshes them."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from mail.maintenance import housekeeping
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.store.database import Database
from models.store.sqlite.reader import THREAD_COUNT
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.large_account import copy_message
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.stores import store_fixtures
from tests.support.stores.counter_check import select_rows

MESSAGE_COUNT = 2000
BASE = 1 << 40
STATEMENT_NUMBERS = count()
SELECT_ANALYZED_TABLES = "SELECT DISTINCT tbl FROM sqlite_stat1"
THREAD_IDS = ", ".join(str(BASE + nth) for nth in range(3))
SELECT_OF_THREADS = f"SELECT id FROM messages WHERE user_id = :user AND thread_id IN ({THREAD_IDS})"  # noqa: S608


@pytest.fixture
async def large_account(ada: GraphQLClient) -> GraphQLClient:
    if ada.environment.database.dialect != "sqlite":
        pytest.skip("PostgreSQL has its own statistics")
    await deliver_to(ada, "Hello duck")
    await copy_message(ada, MESSAGE_COUNT, base=BASE)
    return ada


async def load_plan(client: GraphQLClient) -> str:
    database: Any = client.environment.database  # typed as Any, since it also reads SQL texts
    for _ in range(THREAD_COUNT + 1):  # each connection checks for changes when it reads
        await database.read(text(SELECT_OF_THREADS), {"user": client.user.id})
    # A new text, since SQLite doesn't prepare a known EXPLAIN again.
    statement = text(f"EXPLAIN QUERY PLAN {SELECT_OF_THREADS} -- {next(STATEMENT_NUMBERS)}")
    plan_rows = await database.read(statement, {"user": client.user.id})
    return " ".join(str(row[-1]) for row in plan_rows)


async def test_open_connections_use_new_statistics(large_account: GraphQLClient) -> None:
    assert "ix_messages_user_id" in await load_plan(large_account)
    for _ in range(2):  # the second time, the table of statistics exists
        await large_account.environment.database.refresh_planner_statistics()
        assert "ix_messages_thread_id" in await load_plan(large_account)
        async with large_account.environment.database.engine.begin() as connection:
            await connection.execute(text("DELETE FROM sqlite_stat1"))
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
            await connection.execute(text("DROP TABLE other"))
        assert "ix_messages_user_id" in await load_plan(large_account)


async def test_small_tables_keep_no_statistics(large_account: GraphQLClient) -> None:
    await large_account.environment.database.refresh_planner_statistics()
    analyzed_tables = {
        table for (table,) in await select_rows(large_account.environment, SELECT_ANALYZED_TABLES)
    }
    assert "messages" in analyzed_tables
    assert not analyzed_tables & {"users", "mailboxes", "api_keys"}


async def test_housekeeping_refreshes_the_statistics(large_account: GraphQLClient) -> None:
    await housekeeping.run_housekeeping_round(large_account.environment)
    assert ("messages",) in await select_rows(large_account.environment, SELECT_ANALYZED_TABLES)


async def test_task_refreshes_the_statistics(large_account: GraphQLClient) -> None:
    answer = await run_message_mutation(
        large_account, "messageUpdate", select={"all": True}, set={"flagged": True}
    )
    assert answer["task"]
    while await tasks.run_next_task(large_account.environment):
        pass
    assert ("messages",) in await select_rows(large_account.environment, SELECT_ANALYZED_TABLES)


async def test_opening_a_database_refreshes_the_statistics(
    sqlite_template: Path, tmp_path: Path
) -> None:
    url = store_fixtures.copy_sqlite_template(sqlite_template, tmp_path)
    database = Database(url)
    numbers = "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 2000)"
    async with database.engine.begin() as connection:
        await connection.execute(
            text(
                f"INSERT INTO streams (id, last, pruned_position) {numbers} "  # noqa: S608
                "SELECT 100 + v, 0, 0 FROM n"
            )
        )
    await database.close()
    async with open_environment(
        Settings(data=tmp_path, database_url=url), migrate=True
    ) as environment:
        assert ("streams",) in await select_rows(environment, SELECT_ANALYZED_TABLES)
