"""Row locks of accounts that a vanished client holds."""

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
from tests.conftest import GraphQLClient, make_user, raw_message
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Database]:
    async with store_fixtures.open_empty_postgres(postgres) as database:
        yield database


@asynccontextmanager
async def hold_row_locks(url: str, *stream_ids: int) -> AsyncIterator[None]:
    """Hold the row locks of streams, like an open transaction of a dead client."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1 FROM streams WHERE id = ANY($1) FOR UPDATE", stream_ids)
        yield
    finally:
        await connection.close()


async def deliver_message(port: int, address: str, subject: str) -> tuple[str, float]:
    """Deliver a message. Return the reply code and the seconds until the reply."""
    client = await connect_lmtp(port)
    started_at = time.monotonic()
    try:
        await client.start_data(address)
        client.send_bytes(raw_message(subject) + b".\r\n")
        return (await client.read_reply())[:3], time.monotonic() - started_at
    finally:
        await client.close()


async def test_locked_account_delays_no_other_account(
    ada: GraphQLClient, bob: GraphQLClient, lmtp_listener: LmtpListener, postgres: str
) -> None:
    async with hold_row_locks(postgres, ada.user.id):
        adas_deliveries = [
            asyncio.create_task(deliver_message(lmtp_listener.port, ada.address, f"{n}"))
            for n in range(20)
        ]
        await asyncio.sleep(1)  # all deliveries wait
        assert (await deliver_message(lmtp_listener.port, bob.address, "to bob"))[0] == "250"
        assert not any(task.done() for task in adas_deliveries)
        assert (await ada("{ user { username } }"))["user"]["username"] == "ada"
        assert await bob('mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }')
        replies = await asyncio.gather(*adas_deliveries)
    assert {code for code, _ in replies} == {"451"}
    assert max(seconds for _, seconds in replies) < 60  # one after the other they would wait 80 s
    assert (await deliver_message(lmtp_listener.port, ada.address, "after"))[0] == "250"


async def test_many_locked_accounts_leave_connections_for_others(
    environment: Environment, bob: GraphQLClient, lmtp_listener: LmtpListener, postgres: str
) -> None:
    users = [await make_user(environment, f"user{n}") for n in range(6)]
    addresses = [f"{user.username}@example.org" for user in users]
    async with hold_row_locks(postgres, *(user.id for user in users)):
        first_replies = await asyncio.gather(
            *(deliver_message(lmtp_listener.port, name, "1") for name in addresses)
        )
        assert {code for code, _ in first_replies} == {"451"}
        second_deliveries = [
            asyncio.create_task(deliver_message(lmtp_listener.port, name, f"2{n}"))
            for name in addresses
            for n in range(5)
        ]
        await asyncio.sleep(0.5)
        assert (await deliver_message(lmtp_listener.port, bob.address, "to bob"))[0] == "250"
        assert not all(task.done() for task in second_deliveries)
        assert {code for code, _ in await asyncio.gather(*second_deliveries)} == {"451"}


async def test_transaction_on_locked_account_raises_stream_busy(
    environment: Environment, ada: GraphQLClient, postgres: str
) -> None:
    async with hold_row_locks(postgres, ada.user.id):
        with pytest.raises(StreamBusy):
            async with environment.write_session(ada.user.id):
                pass
        with pytest.raises(StreamBusy):
            await environment.run_transaction(
                lambda transaction: transaction.recorded_positions, ada.user.id
            )
    async with environment.write_session(ada.user.id):
        pass


async def test_every_connection_has_the_session_limits(database: Database) -> None:
    connection = await PostgresConnector(database.url).connect()
    try:
        for name, value in SESSION_SETTINGS.items():
            actual = await connection.fetchval(f"SELECT current_setting('{name}')")
            assert actual in {value, "0"}, name  # 0: TCP settings of a Unix socket
    finally:
        await connection.close()
    for engine in (database.engine, database._readers._read_engine):  # type: ignore[union-attr]  # noqa: SLF001
        async with engine.connect() as engine_connection:
            assert (await engine_connection.execute(text("SHOW lock_timeout"))).scalar() == "4s"
            idle_timeout = await engine_connection.execute(
                text("SHOW idle_in_transaction_session_timeout")
            )
            assert idle_timeout.scalar() == "10s"


async def test_transaction_of_a_vanished_client_ends(
    environment: Environment, ada: GraphQLClient
) -> None:
    separator = "&" if "?" in environment.database.url else "?"
    options = "options=-c%20idle_in_transaction_session_timeout%3D500ms"
    other_database = Database(f"{environment.database.url}{separator}{options}")
    connection = await other_database.engine.connect()
    try:
        statement = text("SELECT 1 FROM streams WHERE id = :key FOR UPDATE")
        await connection.execute(statement, {"key": ada.user.id})
        async with asyncio.timeout(HANG_SECONDS), environment.write_session(ada.user.id):
            pass  # the server ended the transaction of the silent client
    finally:
        with pytest.raises(DBAPIError) as raised:
            await connection.close()
        await other_database.close()
    assert storage_failure(raised.value) is not None


async def test_readiness_requires_a_writable_database(
    environment: Environment, http: httpx.AsyncClient, postgres: str
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
    async with asyncio.timeout(HANG_SECONDS):
        while (await http.get("/health/ready")).status_code != 200:
            await environment.database.engine.dispose()
            await asyncio.sleep(0.3)
