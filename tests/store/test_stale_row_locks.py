"""Accounts whose row lock is held by a machine that has vanished."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mail.smtp.lmtp import LmtpListener
from models.runtime.environment import Environment
from models.store.database import Database
from models.store.outages import StreamBusy, storage_failure
from models.store.postgres.connection import PostgresConnector
from models.store.postgres.limits import SESSION_SETTINGS
from tests.conftest import Client, make_user, raw_message
from tests.support.mail_servers.lmtp_client import connect
from tests.support.stores import store_fixtures

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)

BUSY = 15.0  # seconds that a busy machine may take for what takes a moment


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Database]:
    database = store_fixtures.warmed(Database(postgres))
    await store_fixtures.emptied(database)
    yield database
    await database.close()


@asynccontextmanager
async def held(url: str, *streams: int) -> AsyncIterator[None]:
    """Hold the row locks of streams, as an open transaction of a dead machine does."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1 FROM streams WHERE id = ANY($1) FOR UPDATE", streams)
        yield
    finally:
        await connection.close()


async def deliver(port: int, address: str, subject: str) -> tuple[str, float]:
    """The code of the reply, and the seconds until it came."""
    neighbour = await connect(port)
    began = time.monotonic()
    try:
        await neighbour.begin(address)
        neighbour.send(raw_message(subject) + b".\r\n")
        return (await neighbour.hear())[:3], time.monotonic() - began
    finally:
        await neighbour.close()


async def test_locked_account_delays_no_other_account(
    ada: Client, bob: Client, listener: LmtpListener, postgres: str
) -> None:
    async with held(postgres, ada.user.id):
        to_ada = [
            asyncio.create_task(deliver(listener.port, ada.address, f"{n}")) for n in range(20)
        ]
        await asyncio.sleep(1)  # all wait by now
        assert (await deliver(listener.port, bob.address, "to bob"))[0] == "250"
        assert not any(task.done() for task in to_ada)
        assert (await ada("{ user { username } }"))["user"]["username"] == "ada"
        assert await bob('mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }')
        replies = await asyncio.gather(*to_ada)
    assert {code for code, _ in replies} == {"451"}
    assert max(seconds for _, seconds in replies) < 5 + BUSY
    assert (await deliver(listener.port, ada.address, "after"))[0] == "250"


async def test_many_locked_accounts_leave_connections_for_others(
    world: Environment, bob: Client, listener: LmtpListener, postgres: str
) -> None:
    users = [await make_user(world, f"user{n}") for n in range(6)]
    names = [f"{user.username}@example.org" for user in users]
    async with held(postgres, *(user.id for user in users)):
        first = await asyncio.gather(*(deliver(listener.port, name, "1") for name in names))
        assert {code for code, _ in first} == {"451"}
        again = [
            asyncio.create_task(deliver(listener.port, name, f"2{n}"))
            for name in names
            for n in range(5)
        ]
        await asyncio.sleep(0.5)
        assert (await deliver(listener.port, bob.address, "to bob"))[0] == "250"
        assert not all(task.done() for task in again)
        assert {code for code, _ in await asyncio.gather(*again)} == {"451"}


async def test_unit_on_locked_account_raises_stream_busy(
    world: Environment, ada: Client, postgres: str
) -> None:
    async with held(postgres, ada.user.id):
        with pytest.raises(StreamBusy):
            async with world.write_session(ada.user.id):
                pass
        with pytest.raises(StreamBusy):
            await world.run_transaction(lambda turn: turn.recorded_positions, ada.user.id)
    async with world.write_session(ada.user.id):
        pass


async def test_every_connection_has_the_limits_of_the_product(database: Database) -> None:
    connection = await PostgresConnector(database.url).connect()
    try:
        for name, value in SESSION_SETTINGS.items():
            told = await connection.fetchval(f"SELECT current_setting('{name}')")
            assert told in {value, "0"}, name  # 0: TCP settings of a Unix socket
    finally:
        await connection.close()
    for engine in (database.engine, database._readers._read_engine):  # type: ignore[union-attr]  # noqa: SLF001
        async with engine.connect() as made:
            assert (await made.execute(text("SHOW lock_timeout"))).scalar() == "4s"
            shown = await made.execute(text("SHOW idle_in_transaction_session_timeout"))
            assert shown.scalar() == "10s"


async def test_transaction_of_a_vanished_client_ends(world: Environment, ada: Client) -> None:
    mark = "&" if "?" in world.database.url else "?"
    options = "options=-c%20idle_in_transaction_session_timeout%3D500ms"
    other = Database(f"{world.database.url}{mark}{options}")
    connection = await other.engine.connect()
    try:
        asked = text("SELECT 1 FROM streams WHERE id = :key FOR UPDATE")
        await connection.execute(asked, {"key": ada.user.id})
        async with asyncio.timeout(BUSY), world.write_session(ada.user.id):
            pass  # the server has ended the transaction, since its client says nothing
    finally:
        with pytest.raises(DBAPIError) as ended:
            await connection.close()
        await other.close()
    assert storage_failure(ended.value) is not None


async def test_ready_means_that_the_store_can_be_written(
    world: Environment, http: httpx.AsyncClient, postgres: str
) -> None:
    assert (await http.get("/health/ready")).status_code == 200
    connection = await asyncpg.connect(postgres.replace("+asyncpg", ""))
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await asyncio.sleep(1.1)
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["components"]["store"]) == (503, "unavailable")
    finally:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await connection.close()
    async with asyncio.timeout(BUSY):
        while (await http.get("/health/ready")).status_code != 200:
            await world.database.engine.dispose()
            await asyncio.sleep(0.3)
