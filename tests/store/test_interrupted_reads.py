"""Reads whose caller is cancelled end in the database, and their thread serves the next read."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from models.store.database import Database
from models.store.dependent_selects import single_step
from models.store.read_slots import ReadSlots, current_read_owner
from models.store.sqlite.reader import THREAD_COUNT, THREADS_PER_OWNER
from tests.support.time_limits import HANG_SECONDS

NUMBERS = "WITH RECURSIVE n (v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < {}) "
COUNT = f"{NUMBERS} SELECT count(*) FROM n"  # noqa: S608 - constant text
ENDLESS = {"sqlite": COUNT.format(10**15), "postgresql": "SELECT pg_sleep(86400)"}
SHORT = COUNT.format(500)
RUNNING_SLEEPS = """SELECT count(*) FROM pg_stat_activity
    WHERE state = 'active' AND query LIKE '%pg_sleep(86400)%' AND pid <> pg_backend_pid()
    AND datname = current_database()"""


@contextmanager
def read_as(owner: str | None) -> Iterator[None]:
    """Start reads for this owner in the block."""
    token = current_read_owner.set(owner)
    try:
        yield
    finally:
        current_read_owner.reset(token)


async def select(database: Database, sql: str, *, in_steps: bool = False) -> int:
    """Read one number as a list or as dependent selects do."""
    statement: Any = text(sql)
    if in_steps:
        rows = await database.run_select_steps(single_step((statement, {})))
    else:
        rows = await database.read(statement)
    return int(rows[0][0] or 0)


async def wait_for_statements(statements: list[str], count: int) -> None:
    """Wait until this number of endless statements has started."""
    async with asyncio.timeout(HANG_SECONDS):
        while sum(sql in ENDLESS.values() for sql in statements) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def endless_reads(
    database: Database, statements: list[str], count: int, *, owner: str | None = None
) -> AsyncGenerator[list[asyncio.Task[int]]]:
    """Start endless reads, half of them in steps; cancel them at the end of the block."""
    with read_as(owner):
        tasks = [
            asyncio.create_task(
                select(database, ENDLESS[database.dialect], in_steps=bool(number % 2))
            )
            for number in range(count)
        ]
    try:
        await wait_for_statements(statements, min(count, THREADS_PER_OWNER))
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_in_time(reading: Awaitable[int]) -> int:
    async with asyncio.timeout(HANG_SECONDS):
        return await reading


async def test_threads_of_cancelled_reads_serve_next_reads(
    database: Database, statements: list[str]
) -> None:
    for _ in range(3):
        del statements[:]
        async with endless_reads(database, statements, THREAD_COUNT):
            await wait_for_statements(statements, THREAD_COUNT)
        for _ in range(2 * THREAD_COUNT):
            assert await read_in_time(select(database, SHORT)) == 500
            assert await read_in_time(select(database, SHORT, in_steps=True)) == 500


async def test_postgres_ends_statements_of_cancelled_reads(
    database: Database, statements: list[str]
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite has no server")
    # otherwise PostgreSQL notices the closed connection
    for engine in (database.engine.sync_engine, *database.engines):
        assert engine.dialect.name == "postgresql"
    async with endless_reads(database, statements, THREAD_COUNT):
        await wait_for_statements(statements, THREAD_COUNT)
    async with asyncio.timeout(HANG_SECONDS):
        while await select(database, RUNNING_SLEEPS):  # noqa: ASYNC110 - rows have no event
            await asyncio.sleep(0.02)


async def test_one_owner_uses_a_part_of_the_threads(
    database: Database, statements: list[str]
) -> None:
    if database.dialect != "sqlite":
        pytest.skip("PostgreSQL has other limits")
    async with endless_reads(database, statements, 8 * THREAD_COUNT, owner="ada"):
        with read_as("bob"):
            for _ in range(20):
                assert await read_in_time(select(database, SHORT)) == 500
        assert sum(sql in ENDLESS.values() for sql in statements) == THREADS_PER_OWNER
    with read_as("ada"):
        results = await asyncio.gather(*(select(database, SHORT) for _ in range(20)))
    assert results == [500] * 20


async def test_cancellation_never_reaches_another_read(database: Database) -> None:
    sql = ENDLESS[database.dialect]
    for turns in range(60 if database.dialect == "sqlite" else 10):
        doomed = [asyncio.create_task(select(database, sql)) for _ in range(3)]
        others = [asyncio.create_task(select(database, SHORT)) for _ in range(6)]
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        more = [asyncio.create_task(select(database, SHORT)) for _ in range(6)]
        async with asyncio.timeout(HANG_SECONDS):
            assert await asyncio.gather(*others, *more) == [500] * 12
        await asyncio.gather(*doomed, return_exceptions=True)


async def test_closing_ends_cancelled_reads(database: Database, statements: list[str]) -> None:
    async with endless_reads(database, statements, 2):
        pass
    await database.close()  # without an interrupt it would wait for the statements


async def test_slots_of_an_owner_are_given_in_order() -> None:
    slots, order = ReadSlots(2), list[int]()

    async def hold_slot(number: int) -> None:
        await slots.acquire("ada")
        order.append(number)

    tasks = [asyncio.create_task(hold_slot(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order == [0, 1]
    tasks[2].cancel()
    slots.release("ada")
    await tasks[3]
    assert order == [0, 1, 3]
    await asyncio.wait_for(slots.acquire("bob"), HANG_SECONDS)
    await asyncio.wait_for(slots.acquire(None), HANG_SECONDS)
    slots.release("ada")
    await tasks[4]
    for owner in ("ada", "ada", "bob"):
        slots.release(owner)
    assert not slots._by_owner  # noqa: SLF001 - owners without reads must not stay
