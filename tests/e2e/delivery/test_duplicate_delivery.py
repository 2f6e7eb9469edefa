"""No second copies: the server dies after the SMTP reply and before it stores the result.

This can be seconds after the reply if the database is busy.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text, update

from models.events.journal import Stream
from models.store.database import Database
from tests.support.servers.clock_controlled_servers import (
    TEST_TIME_LIMIT,
    ClockControlledServers,
    run_clock_controlled_servers,
)
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

RELAYED = "SELECT id FROM queue_entries WHERE state = 'RELAYED'"
BUSY_SECONDS = 2.0  # between the reply and the end of the server


@pytest.fixture(params=store_fixtures.STORES)
async def servers(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[ClockControlledServers]:
    url = None
    if request.param == "postgres":
        url = create_migrated_database(request.getfixturevalue("postgres"), "copies")
    async with (
        asyncio.timeout(TEST_TIME_LIMIT),
        run_clock_controlled_servers(tmp_path, url, [0], fake=False) as started_servers,
    ):
        yield started_servers


@asynccontextmanager
async def block_writers(database: Database) -> AsyncGenerator[None]:
    """Hold the locks of every writer: the database on SQLite, the streams on PostgreSQL."""
    async with database.engine.connect() as connection:
        if database.dialect == "postgresql":  # the test holds the locks, however slow the machine
            await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(update(Stream).values(last=Stream.last))
        yield
        await connection.rollback()


async def test_server_killed_before_storing_reply_stores_it_at_its_next_start(
    servers: ClockControlledServers,
) -> None:
    (recipient,) = await servers.send_message("d0.example")
    await servers.wait_until_received(recipient)
    async with block_writers(servers.cluster.database):
        servers.mail_server.open.set()
        await servers.wait_until_delivered()
        await asyncio.sleep(BUSY_SECONDS)
        await servers.cluster.kill(0)
    await servers.cluster.start(0)
    while not await servers.cluster.select_rows(RELAYED):  # noqa: ASYNC110 - rows
        await asyncio.sleep(0.1)
    assert servers.mail_server.received[recipient] == 1
    log = (servers.cluster.servers[0].data_folder / "server.log").read_text()
    assert "Messages may be delivered twice" not in log


async def test_reply_that_waits_for_database_causes_no_second_copy(
    servers: ClockControlledServers,
) -> None:
    (recipient,) = await servers.send_message("d0.example")
    await servers.wait_until_received(recipient)
    async with block_writers(servers.cluster.database):
        servers.mail_server.open.set()
        await servers.wait_until_delivered()
        await asyncio.sleep(3 * BUSY_SECONDS)  # longer than a transaction waits for the database
    # the server looks at the queue
    await servers.wait_until_received(*await servers.send_message("d1.example"))
    while len(await servers.cluster.select_rows(RELAYED)) < 2:  # noqa: ASYNC110 - rows
        await asyncio.sleep(0.1)
    assert dict(servers.mail_server.received) == dict.fromkeys(servers.sent_recipients, 1)
