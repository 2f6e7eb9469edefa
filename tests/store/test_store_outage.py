"""Outages of the database: responses to clients, recovery and log lines."""

import asyncio
import io
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from sqlalchemy import literal, make_url, select, text

from mail.smtp.lmtp import LmtpListener
from mail.storage.blobs.object_stores import BucketStore
from merganser.server.observability.logs import OutageFilter
from models.events.event_types import EventType
from models.store.database import Database
from models.store.outage_log import OUTAGES
from models.store.outages import StorageUnavailable
from models.store.prepared_statements import PreparedStatement, fetch_rows
from tests.conftest import GraphQLClient, deliver_to
from tests.support.clients.plain_http import plain_client
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.servers.live_server import LiveServer, record_journal_entry, wait_until
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.postgres_proxy import PostgresProxy
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

MUTATION = 'mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }'
QUERY = "{ user { username mailboxes { nodes { path } } } }"
POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)
SQLITE = pytest.mark.skipif("sqlite" not in store_fixtures.STORES, reason="STORES has no sqlite")


@pytest.fixture
async def postgres_proxy(postgres: str) -> AsyncIterator[PostgresProxy]:
    postgres_proxy = PostgresProxy(postgres)
    await postgres_proxy.start()
    yield postgres_proxy
    await postgres_proxy.cut_connections()


@pytest.fixture(params=["store"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """Yield an empty database: PostgreSQL behind a proxy that can be cut, or SQLite."""
    if "postgres_proxy" in request.fixturenames:
        postgres = Database(request.getfixturevalue("postgres"))
        await store_fixtures.empty_database(postgres)
        await postgres.close()
        database = Database(request.getfixturevalue("postgres_proxy").url)
    else:
        template = request.getfixturevalue("sqlite_template")
        database = Database(store_fixtures.copy_sqlite_template(template, tmp_path))
    yield database
    await database.close()


def error_extensions(response: Any) -> dict[str, Any]:
    """Return the extensions of the only error."""
    (error,) = response["errors"]
    return dict(error["extensions"])


@POSTGRES
@pytest.mark.parametrize("document", [MUTATION, QUERY, MUTATION.replace(" {", " @atomic {", 1)])
async def test_request_during_outage_returns_unavailable(
    postgres_proxy: PostgresProxy, ada: GraphQLClient, document: str
) -> None:
    await ada(QUERY)
    await postgres_proxy.cut_connections()
    response = await ada.http.post("/graphql", json={"query": document}, headers=ada.headers)
    extensions = error_extensions(response.json())
    assert extensions["code"] == "UNAVAILABLE"
    assert extensions["component"] == "store"
    assert extensions["retryAfter"] == "PT5S"
    assert response.headers.get("retry-after", "5") == "5"
    await postgres_proxy.start()
    await ada(MUTATION)


@POSTGRES
async def test_download_during_outage_returns_503(
    postgres_proxy: PostgresProxy, ada: GraphQLClient
) -> None:
    received_message = await deliver_to(ada)
    answer = await ada("{ user { messages(first: 1) { nodes { id } } } }")
    message_id = answer["user"]["messages"]["nodes"][0]["id"]
    assert received_message
    await postgres_proxy.cut_connections()
    for path in (f"/rest/messages/{message_id}/message.eml", "/.well-known/acme-challenge/a"):
        response = await ada.http.get(path, headers=ada.headers)
        assert response.status_code == 503, (path, response.text)
        assert response.headers["retry-after"] == "5"
    await postgres_proxy.start()


@POSTGRES
async def test_lmtp_delivery_during_outage_is_deferred(
    postgres_proxy: PostgresProxy,
    ada: GraphQLClient,
    lmtp_listener: LmtpListener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = await connect_lmtp(lmtp_listener.port)
    await client.start_data(ada.address)
    await postgres_proxy.cut_connections()
    caplog.clear()
    client.send_bytes(b"Subject: Hello\r\n\r\nHi.\r\n.\r\n")
    assert (await client.read_reply()).startswith("451 ")
    await client.close()
    await postgres_proxy.start()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "Component unavailable"
    ]


@POSTGRES
async def test_subscription_continues_after_an_outage(
    postgres_proxy: PostgresProxy, ada: GraphQLClient, live_server: LiveServer
) -> None:
    query = "subscription { changes { events { __typename } } }"
    followers = [await live_server.follow(ada, query), await live_server.stream(ada, query)]
    await wait_until(lambda: live_server.subscriber_count == 2)
    await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1])
    for follower in followers:
        await wait_until(lambda follower=follower: len(follower.events) == 1)
    await postgres_proxy.cut_connections()
    # the followers read and find no database
    ada.environment.wakeups.wake_followers(ada.user.id, 10**6)
    await wait_until(lambda: not OUTAGES.is_quiet)
    await postgres_proxy.start()
    await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [2])
    for follower in followers:
        await wait_until(lambda follower=follower: len(follower.events) == 2)
        assert not [result for result in follower.results if result.get("errors")]


@POSTGRES
async def test_log_has_one_line_for_an_outage_and_one_for_its_end(
    postgres_proxy: PostgresProxy, ada: GraphQLClient, caplog: pytest.LogCaptureFixture
) -> None:
    await postgres_proxy.cut_connections()
    caplog.clear()
    for _ in range(20):
        with pytest.raises(StorageUnavailable):
            await ada.environment.database.ping()
        await ada.execute(MUTATION)
    await postgres_proxy.start()
    async with asyncio.timeout(HANG_SECONDS):
        while not OUTAGES.is_quiet:
            await ada.environment.database.ping()
            await asyncio.sleep(0.1)
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING and not r.exc_info]
    assert [r.getMessage() for r in warnings] == [
        "Component unavailable",
        "Component available again",
    ]
    assert vars(warnings[1])["failures"] >= 40
    assert vars(warnings[0])["component"] == vars(warnings[1])["component"] == "store"


@POSTGRES
async def test_announced_shutdown_of_a_connection_is_unavailable(
    postgres_proxy: PostgresProxy, database: Database
) -> None:
    """PostgreSQL announces the end of a connection before it closes the connection."""
    statement = PreparedStatement(select(literal(1)))
    await database.run_transaction(lambda connection: fetch_rows(connection, statement, {}))
    postgres_proxy.announce_shutdown()
    await asyncio.sleep(0.1)
    with pytest.raises(StorageUnavailable):
        await database.run_transaction(lambda connection: fetch_rows(connection, statement, {}))
    await postgres_proxy.cut_connections()
    with pytest.raises(StorageUnavailable):
        await database.check_writable()
    await postgres_proxy.start()
    await database.check_writable()


@SQLITE
async def test_locked_sqlite_store_is_unavailable(database: Database, ada: GraphQLClient) -> None:
    other = sqlite3.connect(str(make_url(database.url).database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        extensions = error_extensions(await ada.execute(MUTATION))
        assert (extensions["code"], extensions["retryAfter"]) == ("UNAVAILABLE", "PT5S")
        with pytest.raises(StorageUnavailable):
            await database.check_writable()
    finally:
        other.close()
    await ada(MUTATION)


@SQLITE
async def test_database_error_of_a_bug_is_no_outage(database: Database) -> None:
    with pytest.raises(Exception, match="no such table") as raised:
        await database.read(text("SELECT * FROM nowhere"))  # type: ignore[arg-type]
    assert not isinstance(raised.value, StorageUnavailable)


async def test_refusing_object_storage_is_unavailable() -> None:
    async def answer_forbidden(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with run_scripted_server(answer_forbidden) as port:
        keys = "access_key_id=a&secret_access_key=b&region=us-east-1"
        options = dict(parse_qsl(f"endpoint=http://127.0.0.1:{port}&{keys}"))
        store = BucketStore("s3://bucket", options)
        for operation in (
            store.put("00/a", b"a"),
            store.get("00/a"),
            store.get_range("00/a", 0, 1),
        ):
            with pytest.raises(StorageUnavailable) as failure:
                await operation
            assert failure.value.component == "blobs"
        with pytest.raises(StorageUnavailable):
            _ = [stored_object async for stored_object in store.list()]


def test_log_omits_tracebacks_of_outages_only() -> None:
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.addFilter(OutageFilter())
    logger = logging.getLogger("tests.outage")
    logger.addHandler(handler)
    for error in (StorageUnavailable(), ValueError("a bug")):
        try:
            raise error
        except (StorageUnavailable, ValueError):
            logger.exception("it broke")
    logger.removeHandler(handler)
    assert stream.getvalue().count("it broke") == 1
    assert "a bug" in stream.getvalue()
    assert OUTAGES._open.pop("store").failures  # noqa: SLF001


async def is_ready(client: httpx.AsyncClient, url: str) -> bool:
    return (await client.get(f"{url}/health/ready")).status_code == 200


def _count_store_events(server: MerganserProcess, event: str) -> int:
    return sum(
        (line.get("component"), line["event"]) == ("store", event) for line in server.log_records()
    )


@POSTGRES
async def test_server_logs_an_outage_in_two_lines(
    postgres_proxy: PostgresProxy, tmp_path: Path
) -> None:
    """Every worker of a server process loses the database twice."""
    direct_database = Database(postgres_proxy.unix_socket_url)
    await store_fixtures.empty_database(direct_database)
    await direct_database.close()
    server = MerganserProcess(tmp_path, postgres_proxy.url, {"EVENT_BUS_URL": "postgresql"})
    await asyncio.to_thread(server.start)
    try:
        for outage_number in (1, 2):
            await postgres_proxy.cut_connections()
            async with plain_client() as client:
                for _ in range(10):
                    query = {"query": "{ viewer { role } }"}
                    headers = {"Authorization": f"Bearer mgk_{'k' * 43}"}
                    answer = await client.post(f"{server.url}/graphql", json=query, headers=headers)
                    assert answer.status_code == 503
                    assert answer.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
                    await asyncio.sleep(0.2)
                await postgres_proxy.start()
                async with asyncio.timeout(HANG_SECONDS):
                    while not await is_ready(client, server.url):  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                    while _count_store_events(server, "Component available again") < outage_number:
                        await client.get(f"{server.url}/health/ready")  # reads the database
                        await asyncio.sleep(0.2)
    finally:
        await asyncio.to_thread(server.stop)
    lines = [line for line in server.log_records() if line["level"] != "info"]
    assert not [line for line in lines if "traceback" in line], lines
    assert _count_store_events(server, "Component unavailable") == 2
    assert _count_store_events(server, "Component available again") == 2
    assert len(lines) <= 2 * 6, lines  # also the readiness and the event bus
