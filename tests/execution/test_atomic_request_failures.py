"""`@atomic` requests over each transport, and requests that fail or are cancelled."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import event, text

from graph.app import create_app
from graph.schema import schema
from mail.storage.blobs.object_stores import FolderStore
from models.events import journal
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.loop_clock import LoopClock
from tests.support.operations.atomic_operations import (
    FAILING_RENAME,
    entry_field,
    error_codes_by_field,
    load_key_values,
)
from tests.support.servers.live_server import LiveServer, run_live_server, wait_until
from tests.support.time_limits import HANG_SECONDS

DEADLINE = 10 * HANG_SECONDS  # only a test that moves the clock of the loop reaches it
COMMITTED_MUTATION = (
    f"mutation @atomic {{ {entry_field('a', alias='a')} {entry_field('b', alias='b')} }}"
)
FAILING_MUTATION = f"mutation @atomic {{ {entry_field('c', alias='c')} {FAILING_RENAME} }}"
UPLOAD_MUTATION = f"""mutation ($text: String!) @atomic {{ {entry_field("a", alias="a")}
  draftSave(input: {{set: {{subject: "Large",
  to: [{{address: "x@y.example"}}], addAttachments: [{{content: $text, filename: "x.bin"}}]}}}})
  {{ errors {{ code }} }} }}"""


class GatedStore(FolderStore):
    """An object store that reports a write and blocks it until `opened` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.write_started = asyncio.Event()
        self.opened = asyncio.Event()

    async def put(self, name: str, data: bytes) -> None:
        self.write_started.set()
        await self.opened.wait()
        await super().put(name, data)


@pytest.fixture
async def gated_store(tmp_path: Path) -> AsyncIterator[GatedStore]:
    gated_store = GatedStore(tmp_path / "gated")
    yield gated_store
    await gated_store.close()


@pytest.fixture
def gated_environment(environment: Environment, gated_store: GatedStore) -> Environment:
    """The test environment with blobs in `gated_store`."""
    return replace(environment, object_store=gated_store)


def request_arguments(client: GraphQLClient, query: str, **variables: Any) -> dict[str, Any]:
    return {
        "json": {"query": query, "variables": variables},
        "headers": client.headers,
    }


def incompressible_base64(client: GraphQLClient) -> str:
    """Return random bytes as Base64."""

    return base64.b64encode(client.environment.random_bytes(60_000)).decode()


SendDocument = Callable[[LiveServer, GraphQLClient, str], Awaitable[Any]]


async def send_by_post(server: LiveServer, client: GraphQLClient, query: str) -> Any:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as http:
        arguments = request_arguments(client, query)
        return (await http.post(f"http://127.0.0.1:{server.port}/graphql", **arguments)).json()


async def send_by_sse(server: LiveServer, client: GraphQLClient, query: str) -> Any:
    stream = await server.stream(client, query)
    await wait_until(lambda: stream.end_frame)
    return stream.payloads[0]


async def send_by_websocket(server: LiveServer, client: GraphQLClient, query: str) -> Any:
    subscription = await server.follow(client, query)
    await wait_until(lambda: subscription.end_frame)
    await subscription.unsubscribe()
    return subscription.payloads[0]


@pytest.mark.parametrize("send_document", [send_by_post, send_by_sse, send_by_websocket])
async def test_atomic_request_stores_all_or_none_on_each_transport(
    send_document: SendDocument, ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    async with run_live_server(environment, tmp_path) as server:
        assert error_codes_by_field(
            (await send_document(server, ada, COMMITTED_MUTATION))["data"]
        ) == {"a": [], "b": []}
        failed = (await send_document(server, ada, FAILING_MUTATION))["data"]
        assert error_codes_by_field(failed) == {"c": ["ABORTED"], "mailboxRename": ["NOT_FOUND"]}
    assert await load_key_values(ada) == {"a": "1", "b": "1"}


async def test_deadline_rolls_back_atomic_request(
    ada: GraphQLClient,
    gated_environment: Environment,
    gated_store: GatedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop_clock, content = LoopClock(), incompressible_base64(ada)
    async with client_in_environment(gated_environment, ada, tmp_path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "limits", replace(schema.limits, deadline=DEADLINE))
            request = asyncio.create_task(client.execute(UPLOAD_MUTATION, text=content))
            await gated_store.write_started.wait()
            loop_clock.advance(DEADLINE)
            answer = await request
    assert answer["errors"][0]["extensions"]["code"] == "DEADLINE_EXCEEDED"
    assert await load_key_values(ada) == {}


async def test_deadline_during_commit_returns_the_payloads(
    ada: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ada(COMMITTED_MUTATION)
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=DEADLINE))
    loop_clock, advances = LoopClock(), list[float]()

    def pass_deadline(_: Any) -> None:
        if not advances:
            advances.append(DEADLINE)
            loop_clock.advance(DEADLINE)  # the event loop sees the deadline while the commit runs

    for engine in environment.database.engines:
        event.listen(engine, "commit", pass_deadline)
    answer = await ada.execute(
        f"mutation @atomic {{ {entry_field('c', alias='c')} {entry_field('d', alias='d')} }}"
    )
    assert advances
    assert "errors" not in answer
    assert error_codes_by_field(answer["data"]) == {"c": [], "d": []}
    assert set(await load_key_values(ada)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("transport", ["post", "events", "socket"])
async def test_client_disconnect_rolls_back_atomic_request(
    transport: str,
    ada: GraphQLClient,
    gated_environment: Environment,
    gated_store: GatedStore,
    tmp_path: Path,
) -> None:
    content = incompressible_base64(ada)
    leave: Callable[[], Awaitable[None]]
    async with run_live_server(gated_environment, tmp_path) as server:
        if transport == "socket":
            operation = await server.follow(ada, UPLOAD_MUTATION, text=content)
            leave = operation.unsubscribe
        elif transport == "events":
            operation = await server.stream(ada, UPLOAD_MUTATION, text=content)
            leave = operation.unsubscribe
        else:
            leave = await start_post(server, ada, content)
        async with asyncio.timeout(HANG_SECONDS):
            await gated_store.write_started.wait()
        await leave()
        limiter = server.endpoint.guards.operation_limiter
        await wait_until(lambda: not limiter.in_use_count)
    assert await load_key_values(ada) == {}


async def start_post(
    server: LiveServer, client: GraphQLClient, content: str
) -> Callable[[], Awaitable[None]]:
    """Start the request by POST and return the function that disconnects."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = orjson.dumps({"query": UPLOAD_MUTATION, "variables": {"text": content}})
    head = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {client.secret}\r\nContent-Type: application/json\r\n\r\n"
    writer.write(head.encode() + body)

    async def leave() -> None:
        writer.close()
        await writer.wait_closed()

    return leave


async def test_cancellation_during_statement_rolls_back_atomic_request(
    ada: GraphQLClient, tmp_path: Path
) -> None:
    new_ids = list[int]()

    def new_id_and_cancel() -> int:
        new_ids.append(ada.environment.new_id())
        request.cancel()  # the next await is the statement that stores the row
        return new_ids[-1]

    async with client_in_environment(
        replace(ada.environment, new_id=new_id_and_cancel), ada, tmp_path
    ) as client:
        request = asyncio.create_task(client.execute(COMMITTED_MUTATION))
        with pytest.raises(asyncio.CancelledError):
            await request
    assert new_ids
    assert await load_key_values(ada) == {}
    # the database is not locked
    assert error_codes_by_field(await ada(COMMITTED_MUTATION)) == {"a": [], "b": []}


async def test_blocked_atomic_request_is_stored_when_blobs_are_written(
    ada: GraphQLClient, gated_environment: Environment, gated_store: GatedStore, tmp_path: Path
) -> None:
    async with client_in_environment(gated_environment, ada, tmp_path) as client:
        request = asyncio.create_task(client(UPLOAD_MUTATION, text=incompressible_base64(ada)))
        await gated_store.write_started.wait()
        assert await load_key_values(ada) == {}
        gated_store.opened.set()
        assert error_codes_by_field(await request) == {"a": [], "draftSave": []}
    assert await load_key_values(ada) == {"a": "1"}


@asynccontextmanager
async def client_in_environment(
    environment: Environment, client: GraphQLClient, spool: Path
) -> AsyncIterator[GraphQLClient]:
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=spool))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield replace(client, http=http, environment=environment)


def update_names_document(*users: str) -> str:
    fields = [
        f'{user}: userUpdate(input: {{users: {{usernames: ["{user}"]}}, set: {{name: "New"}}}})'
        " { users { name } errors { code } }"
        for user in users
    ]
    return f"mutation @atomic {{ {' '.join(fields)} }}"


async def is_waiting_for_lock(environment: Environment) -> bool:
    """True if a connection waits for a row lock of PostgreSQL."""
    async with environment.database.engine.connect() as connection:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool((await connection.execute(query)).scalar())


async def cause_deadlock(
    environment: Environment, first: int, second: int, request: "asyncio.Task[Any]"
) -> None:
    """Lock the second account until the request waits for it, then lock the first one."""
    async with environment.database.write_session() as session:
        await session.exec(text("SET LOCAL deadlock_timeout = '1min'"))  # type: ignore[call-overload]
        await journal.lock_streams(session, [second])
        async with asyncio.timeout(HANG_SECONDS):
            while not (await is_waiting_for_lock(environment) or request.done()):  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.01)
        await journal.lock_streams(session, [first])  # the request is rolled back for this


async def test_atomic_request_is_repeated_after_deadlock(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    environment, users = ada.environment, (ada.user.id, bob.user.id)
    if environment.database.dialect != "postgresql":
        pytest.skip("one writer crosses with nobody")
    async with asyncio.timeout(HANG_SECONDS):
        request = asyncio.create_task(root(update_names_document("ada", "bob")))
        # the request locks ada first and then waits for bob
        await cause_deadlock(environment, *users, request)
        payloads = await request
    assert error_codes_by_field(payloads) == {"ada": [], "bob": []}
    assert [payload["users"][0]["name"] for payload in payloads.values()] == ["New", "New"]
