"""What clients are told while the store is away, and what the log says."""

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
from models.events.journal import ChangeKind
from models.store.database import Database
from models.store.outage_log import OUTAGES
from models.store.outages import StorageUnavailable
from models.store.prepared_statements import PreparedStatement, fetch_rows
from tests.conftest import Client, receive
from tests.support.mail_servers.lmtp_client import connect
from tests.support.servers.live_server import House, note, until
from tests.support.servers.merganser_server import Server
from tests.support.servers.postgres_proxy import Proxy
from tests.support.stores import store_fixtures

MUTATION = 'mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }'
QUERY = "{ user { username mailboxes { path } } }"
POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)
SQLITE = pytest.mark.skipif("sqlite" not in store_fixtures.STORES, reason="STORES has no sqlite")
PATIENCE = 60.0


@pytest.fixture
async def road(postgres: str) -> AsyncIterator[Proxy]:
    road = Proxy(postgres)
    await road.start()
    yield road
    await road.cut()
    OUTAGES._open.clear()  # noqa: SLF001 - the next test has another store


@pytest.fixture(params=["store"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty store: PostgreSQL behind a road that can be cut, or SQLite."""
    if "road" in request.fixturenames:
        postgres = Database(request.getfixturevalue("postgres"))
        await store_fixtures.emptied(postgres)
        await postgres.close()
        database = Database(request.getfixturevalue("road").url)
    else:
        template = request.getfixturevalue("sqlite_template")
        database = Database(store_fixtures.copied(template, tmp_path))
    yield database
    await database.close()


def told(answer: Any) -> dict[str, Any]:
    """The extensions of the only error."""
    (error,) = answer["errors"]
    return dict(error["extensions"])


@POSTGRES
@pytest.mark.parametrize("document", [MUTATION, QUERY, MUTATION.replace(" {", " @atomic {", 1)])
async def test_requests_are_answered_unavailable(road: Proxy, ada: Client, document: str) -> None:
    await ada(QUERY)
    await road.cut()
    response = await ada.http.post("/graphql", json={"query": document}, headers=ada.headers)
    extensions = told(response.json())
    assert extensions["code"] == "UNAVAILABLE"
    assert extensions["component"] == "store"
    assert extensions["retryAfter"] == "PT5S"
    assert response.headers.get("retry-after", "5") == "5"
    await road.start()
    await ada(MUTATION)


@POSTGRES
async def test_bytes_over_http_answer_503(road: Proxy, ada: Client) -> None:
    placed = await receive(ada)
    answer = await ada("{ user { messages(first: 1) { nodes { id } } } }")
    key = answer["user"]["messages"]["nodes"][0]["id"]
    assert placed
    await road.cut()
    for path in (f"/rest/messages/{key}/message.eml", "/.well-known/acme-challenge/a"):
        response = await ada.http.get(path, headers=ada.headers)
        assert response.status_code == 503, (path, response.text)
        assert response.headers["retry-after"] == "5"
    await road.start()


@POSTGRES
async def test_neighbours_are_told_to_try_later(
    road: Proxy, ada: Client, listener: LmtpListener, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = await connect(listener.port)
    await neighbour.begin(ada.address)
    await road.cut()
    caplog.clear()
    neighbour.send(b"Subject: Hello\r\n\r\nHi.\r\n.\r\n")
    assert (await neighbour.hear()).startswith("451 ")
    await neighbour.close()
    await road.start()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "a component is unavailable"
    ]


@POSTGRES
async def test_subscription_goes_on_after_an_outage(road: Proxy, ada: Client, live: House) -> None:
    query = "subscription { changes { events { __typename } } }"
    followers = [await live.follow(ada, query), await live.stream(ada, query)]
    await until(lambda: live.seats == 2, PATIENCE)
    await note(ada, ChangeKind.MAILBOX_UPDATED, [1])
    for one in followers:
        await until(lambda one=one: len(one.events) == 1, PATIENCE)
    await road.cut()
    ada.world.wakeups.wake_followers(ada.user.id, 10**6)  # they look, and find no store
    await asyncio.sleep(1)
    await road.start()
    await note(ada, ChangeKind.MAILBOX_UPDATED, [2])
    for one in followers:
        await until(lambda one=one: len(one.events) == 2, PATIENCE)
        assert not [result for result in one.results if result.get("errors")]


@POSTGRES
async def test_log_has_one_line_for_an_outage_and_one_for_its_end(
    road: Proxy, ada: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await road.cut()
    caplog.clear()
    for _ in range(20):
        with pytest.raises(StorageUnavailable):
            await ada.world.database.ping()
        await ada.raw(MUTATION)
    await road.start()
    async with asyncio.timeout(PATIENCE):
        while not OUTAGES.is_quiet:
            await ada.world.database.ping()
            await asyncio.sleep(0.1)
    told = [r for r in caplog.records if r.levelno >= logging.WARNING and not r.exc_info]
    assert [r.getMessage() for r in told] == [
        "a component is unavailable",
        "a component is available again",
    ]
    assert vars(told[1])["failures"] >= 40
    assert vars(told[0])["component"] == vars(told[1])["component"] == "store"


@POSTGRES
async def test_connection_whose_end_is_announced_is_unavailable(
    road: Proxy, database: Database
) -> None:
    """PostgreSQL says that it ends a connection before it closes it."""
    asked = PreparedStatement(select(literal(1)))
    await database.run_transaction(lambda connection: fetch_rows(connection, asked, {}))
    road.announce_end()
    await asyncio.sleep(0.1)
    with pytest.raises(StorageUnavailable):
        await database.run_transaction(lambda connection: fetch_rows(connection, asked, {}))
    await road.cut()
    with pytest.raises(StorageUnavailable):
        await database.check_writable()
    await road.start()
    await database.check_writable()


@SQLITE
async def test_locked_sqlite_store_is_unavailable(database: Database, ada: Client) -> None:
    other = sqlite3.connect(str(make_url(database.url).database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        extensions = told(await ada.raw(MUTATION))
        assert (extensions["code"], extensions["retryAfter"]) == ("UNAVAILABLE", "PT5S")
        with pytest.raises(StorageUnavailable):
            await database.check_writable()
    finally:
        other.close()
    await ada(MUTATION)


@SQLITE
async def test_bugs_are_no_outages(database: Database) -> None:
    with pytest.raises(Exception, match="no such table") as bug:
        await database.read(text("SELECT * FROM nowhere"))  # type: ignore[arg-type]
    assert not isinstance(bug.value, StorageUnavailable)


async def test_object_storage_that_refuses_is_unavailable() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    keys = "access_key_id=a&secret_access_key=b&region=us-east-1"
    store = BucketStore(
        "s3://bucket",
        dict(parse_qsl(f"endpoint=http://127.0.0.1:{port}&{keys}")),
    )
    for work in (store.put("00/a", b"a"), store.get("00/a"), store.get_range("00/a", 0, 1)):
        with pytest.raises(StorageUnavailable) as failure:
            await work
        assert failure.value.component == "blobs"
    with pytest.raises(StorageUnavailable):
        _ = [one async for one in store.list()]
    server.close()
    OUTAGES._open.clear()  # noqa: SLF001 - the next test has another store


def test_log_leaves_out_tracebacks_of_outages_only() -> None:
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.addFilter(OutageFilter())
    log = logging.getLogger("tests.outage")
    log.addHandler(handler)
    for problem in (StorageUnavailable(), ValueError("a bug")):
        try:
            raise problem
        except (StorageUnavailable, ValueError):
            log.exception("it broke")
    log.removeHandler(handler)
    assert stream.getvalue().count("it broke") == 1
    assert "a bug" in stream.getvalue()
    assert OUTAGES._open.pop("store").failures  # noqa: SLF001


async def is_ready(client: httpx.AsyncClient, url: str) -> bool:
    return (await client.get(f"{url}/health/ready")).status_code == 200


@POSTGRES
async def test_server_logs_an_outage_in_two_lines(road: Proxy, tmp_path: Path) -> None:
    """Every worker of a real server loses the store three times."""
    empty = Database(road.store)
    await store_fixtures.emptied(empty)
    await empty.close()
    server = Server(tmp_path, road.url, {"WAKEUPS": "postgresql"})
    await asyncio.to_thread(server.start)
    try:
        for _ in range(2):
            await road.cut()
            async with httpx.AsyncClient() as client:
                for _ in range(10):
                    query = {"query": "{ viewer { role } }"}
                    headers = {"Authorization": f"Bearer mgk_{'k' * 43}"}
                    answer = await client.post(f"{server.url}/graphql", json=query, headers=headers)
                    assert answer.status_code == 503
                    assert answer.json()["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
                    await asyncio.sleep(0.2)
                await road.start()
                async with asyncio.timeout(PATIENCE):
                    while not await is_ready(client, server.url):  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
                await asyncio.sleep(4)
    finally:
        await asyncio.to_thread(server.stop)
    lines = [line for line in server.logged() if line["level"] != "info"]
    assert not [line for line in lines if "traceback" in line], lines
    store = [line["event"] for line in lines if line.get("component") == "store"]
    assert store.count("a component is unavailable") == 2
    assert store.count("a component is available again") == 2
    assert len(lines) <= 2 * 6, lines  # also: not ready, bus
