"""An SQLite database that can't grow: transactions fail completely and report a full disk."""

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
from models.store.outages import DiskFull
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.stores import store_fixtures

FREE_PAGES = 20  # the number of pages the database can grow by
ROW_SIZE = 60_000  # characters of a row, about 15 pages
TRANSACTION_COUNT = 40
INSERT = text("INSERT INTO filled VALUES (:x)")
COUNT = text("SELECT count(*) AS many FROM filled").columns(literal(0).label("many"))


@pytest.fixture
async def database(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """Yield a database with the table `filled` that can grow by a few pages."""
    database = Database(store_fixtures.copy_sqlite_template(sqlite_template, tmp_path))
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE filled (x text PRIMARY KEY)"))
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar() or 0

    def limit_pages(connection: Any, _record: Any, _proxy: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages + FREE_PAGES}")

    for engine in (database.engine.sync_engine, *database.engines):
        event.listen(engine, "checkout", limit_pages)
    yield database
    await database.close()


async def insert_in_session(database: Database, number: int, *, in_savepoint: bool) -> None:
    """Insert a row with a session, in a savepoint or not."""
    values = {"x": f"{number}".ljust(ROW_SIZE, "x")}
    async with database.write_session() as session:
        connection = await session.connection()
        if in_savepoint:
            async with session.begin_nested():
                await connection.execute(INSERT, values)
        else:
            await connection.execute(INSERT, values)


async def insert_in_transaction(database: Database, number: int) -> None:
    """Insert a row with a transaction function."""

    def insert_row(connection: Connection) -> None:
        connection.execute(INSERT, {"x": f"{number}".ljust(ROW_SIZE, "x")})

    await database.run_transaction(insert_row)


@pytest.mark.parametrize("method", ["unit", "nested", "function"])
async def test_transactions_without_space_raise_disk_full(database: Database, method: str) -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    transactions = [
        insert_in_transaction(database, number)
        if method == "function"
        else insert_in_session(database, number, in_savepoint=method == "nested")
        for number in range(TRANSACTION_COUNT)
    ]
    outcomes = await asyncio.gather(*transactions, return_exceptions=True)
    failures = [type(error) for error in outcomes if error is not None]
    del transactions, outcomes
    gc.collect()  # the garbage collector reports futures whose error was never read
    await asyncio.sleep(0)
    assert not unhandled
    assert failures
    assert failures == [DiskFull] * len(failures)
    (row,) = await database.read(select(COUNT.subquery().c.many))
    assert row.many == TRANSACTION_COUNT - len(failures), (
        "what was acknowledged is stored, nothing else"
    )


async def test_disk_reserve_is_a_setting(environment: Environment, tmp_path: Path) -> None:
    reserved = replace(environment, options=replace(environment.options, disk_reserve=1 << 62))
    listener = await lmtp.start_lmtp_listener(
        reserved, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    try:
        client = await connect_lmtp(listener.port)
        assert (await client.run_command("MAIL FROM:<carol@example.net> SIZE=100")).startswith(
            "452 4.3.1"
        )
        await client.close()
    finally:
        await listener.close(1)
    assert (
        http_server.upload_limits_of_process(Settings(disk_reserve=1 << 62), 1).disk_reserve
        == 1 << 62
    )
