"""A store that SQLite can't make larger: units fail as a whole, and say why."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, literal, select, text

from mail.smtp import lmtp
from merganser.server import http_server
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.store.database import Database
from models.store.outage_log import OUTAGES
from models.store.outages import DiskFull
from tests.support.mail_servers.lmtp_client import connect
from tests.support.stores import store_fixtures

PAGES = 20  # that the store may grow by
SIZE = 60_000  # characters of a row, in about 15 pages
UNITS = 40
INSERT = text("INSERT INTO filled VALUES (:x)")
COUNT = text("SELECT count(*) AS many FROM filled").columns(literal(0).label("many"))


@pytest.fixture
async def database(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A store with the table `filled` that may grow by few pages."""
    database = Database(store_fixtures.copied(sqlite_template, tmp_path))
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE filled (x text PRIMARY KEY)"))
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar() or 0

    def limit(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages + PAGES}")

    for engine in (database.engine.sync_engine, *database.engines):
        event.listen(engine, "checkout", limit)
    yield database
    await database.close()
    OUTAGES._open.clear()  # noqa: SLF001 - the next test has another store


async def insert(database: Database, number: int, *, nested: bool) -> None:
    """A unit that writes a row, in a savepoint of its own or not."""
    given = {"x": f"{number}".ljust(SIZE, "x")}
    async with database.write_session() as session:
        connection = await session.connection()
        if nested:
            async with session.begin_nested():
                await connection.execute(INSERT, given)
        else:
            await connection.execute(INSERT, given)


async def apply(database: Database, number: int) -> None:
    """The same as a plain function."""

    def work(connection: Connection) -> None:
        connection.execute(INSERT, {"x": f"{number}".ljust(SIZE, "x")})

    await database.run_transaction(work)


@pytest.mark.parametrize("way", ["unit", "nested", "function"])
async def test_units_that_find_no_room_say_that_the_disk_is_full(
    database: Database, way: str
) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: unhandled.append(facts))
    units = [
        apply(database, number)
        if way == "function"
        else insert(database, number, nested=way == "nested")
        for number in range(UNITS)
    ]
    outcomes = await asyncio.gather(*units, return_exceptions=True)
    failures = [type(problem) for problem in outcomes if problem is not None]
    del units, outcomes
    gc.collect()  # a future tells at its end that nobody heard of its error
    await asyncio.sleep(0)
    assert not unhandled
    assert failures
    assert failures == [DiskFull] * len(failures)
    (row,) = await database.read(select(COUNT.subquery().c.many))
    assert row.many == UNITS - len(failures), "what was acknowledged is stored, nothing else"


async def test_the_reserve_of_the_disk_is_a_setting(world: Environment, tmp_path: Path) -> None:
    reserved = replace(world, options=replace(world.options, disk_reserve=1 << 62))
    listener = await lmtp.start_lmtp_listener(
        reserved, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    try:
        client = await connect(listener.port)
        assert (await client.say("MAIL FROM:<carol@example.net> SIZE=100")).startswith("452 4.3.1")
        await client.close()
    finally:
        await listener.close(1)
    assert (
        http_server.upload_limits_of_process(Settings(disk_reserve=1 << 62), 1).disk_reserve
        == 1 << 62
    )
