"""SQLite's planner knows how much there is, in every connection."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from mail.maintenance import housekeeping
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.store.database import Database, SqliteReaders
from resolvers.admin import tasks
from tests.conftest import Client, receive
from tests.support.accounts.large_account import fill
from tests.support.operations.bulk_operations import call
from tests.support.stores import store_fixtures
from tests.support.stores.counter_check import rows

MANY = 2000
BASE = 1 << 40
NUMBERS = count()
KNOWN = "SELECT DISTINCT tbl FROM sqlite_stat1"
CONVERSATIONS = ", ".join(str(BASE + nth) for nth in range(3))
SELECT = f"SELECT id FROM messages WHERE user_id = :user AND thread_id IN ({CONVERSATIONS})"  # noqa: S608


@pytest.fixture
async def full(ada: Client) -> Client:
    if ada.world.database.dialect != "sqlite":
        pytest.skip("PostgreSQL has its own statistics")
    await receive(ada, "Hello duck")
    await fill(ada, MANY, base=BASE)
    return ada


async def _plan(client: Client) -> str:
    database: Any = client.world.database  # which reads texts, too
    for _ in range(SqliteReaders.THREADS + 1):  # each connection looks for changes when it reads
        await database.read(text(SELECT), {"user": client.user.id})
    # with a text of its own: an EXPLAIN that was prepared before is not prepared again
    asked = text(f"EXPLAIN QUERY PLAN {SELECT} -- {next(NUMBERS)}")
    found = await database.read(asked, {"user": client.user.id})
    return " ".join(str(row[-1]) for row in found)


async def test_open_connections_use_new_statistics(full: Client) -> None:
    assert "ix_messages_user_id" in await _plan(full)
    for _ in range(2):  # the second time there is a table of statistics already
        await full.world.database.refresh_planner_statistics()
        assert "ix_messages_thread_id" in await _plan(full)
        async with full.world.database.engine.begin() as connection:
            await connection.execute(text("DELETE FROM sqlite_stat1"))
            await connection.execute(text("CREATE TABLE other (id INTEGER)"))
            await connection.execute(text("DROP TABLE other"))
        assert "ix_messages_user_id" in await _plan(full)


async def test_small_tables_keep_no_statistics(full: Client) -> None:
    await full.world.database.refresh_planner_statistics()
    known = {table for (table,) in await rows(full.world, KNOWN)}
    assert "messages" in known
    assert not known & {"users", "mailboxes", "api_keys"}


async def test_housekeeping_refreshes_the_statistics(full: Client) -> None:
    await housekeeping.run_round(full.world)
    assert ("messages",) in await rows(full.world, KNOWN)


async def test_a_task_refreshes_the_statistics(full: Client) -> None:
    answer = await call(full, "messageUpdate", select={"all": True}, set={"flagged": True})
    assert answer["task"]
    while await tasks.run_next_task(full.world):
        pass
    assert ("messages",) in await rows(full.world, KNOWN)


async def test_opening_a_store_refreshes_the_statistics(
    sqlite_template: Path, tmp_path: Path
) -> None:
    url = store_fixtures.copied(sqlite_template, tmp_path)
    database = Database(url)
    many = "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 2000)"
    async with database.engine.begin() as connection:
        await connection.execute(
            text(f"INSERT INTO streams (id, last, gone) {many} SELECT 100 + v, 0, 0 FROM n")  # noqa: S608
        )
    await database.close()
    async with open_environment(Settings(data=tmp_path, store=url), migrate=True) as world:
        assert ("streams",) in await rows(world, KNOWN)
