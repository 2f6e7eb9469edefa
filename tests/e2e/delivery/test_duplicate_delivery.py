"""When a recipient gets a second copy: the server dies after the answer, before it is stored.

That can be seconds after the answer, if the store is busy meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import update

from models.events.journal import Stream
from models.store.database import Database
from tests.support.servers.clock_controlled_servers import (
    TEST_TIME_LIMIT,
    ClockControlledServers,
    run_clock_controlled_servers,
)
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

RELAYED = "SELECT id FROM deliveries WHERE state = 'RELAYED'"
BUSY = 2.0  # seconds between the answer and the end of the server


@pytest.fixture(params=store_fixtures.STORES)
async def here(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[ClockControlledServers]:
    url = None
    if request.param == "postgres":
        url = create_database(request.getfixturevalue("postgres"), "copies")
    async with (
        asyncio.timeout(TEST_TIME_LIMIT),
        run_clock_controlled_servers(tmp_path, url, [0], fake=False) as made,
    ):
        yield made


@asynccontextmanager
async def busy(database: Database) -> AsyncGenerator[None]:
    """Hold what every writer to an account needs: the store on SQLite, the streams elsewhere."""
    async with database.engine.connect() as connection:
        await connection.execute(update(Stream).values(last=Stream.last))
        yield
        await connection.rollback()


async def test_a_server_that_dies_before_the_answer_is_stored_sends_a_second_copy(
    here: ClockControlledServers,
) -> None:
    """The second copy is counted, and comes although no server died within a second."""
    (to,) = await here.send("d0.example")
    await here.wait_until_received(to)
    async with busy(here.cluster.database):
        here.far.open.set()
        await here.wait_until_delivered()
        answered_at = time.monotonic()
        await asyncio.sleep(BUSY)
        await here.cluster.kill(0)
        assert time.monotonic() - answered_at > 1
    await here.cluster.start(0)
    while here.far.received[to] < 2:  # noqa: ASYNC110 - nobody rings
        await asyncio.sleep(0.02)
    await asyncio.sleep(BUSY)
    assert here.far.received[to] == 2
    log = (here.cluster.servers[0].data_folder / "server.log").read_text()
    assert log.count("mail may arrive twice") == 1


async def test_an_answer_that_waits_for_the_store_is_no_second_copy(
    here: ClockControlledServers,
) -> None:
    (to,) = await here.send("d0.example")
    await here.wait_until_received(to)
    async with busy(here.cluster.database):
        here.far.open.set()
        await here.wait_until_delivered()
        await asyncio.sleep(3 * BUSY)  # longer than a unit of work waits for the store
    await here.wait_until_received(*await here.send("d1.example"))  # the server looks at the queue
    while len(await here.cluster.select_rows(RELAYED)) < 2:  # noqa: ASYNC110 - rows
        await asyncio.sleep(0.1)
    assert dict(here.far.received) == dict.fromkeys(here.sent, 1)
