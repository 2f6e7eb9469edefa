"""A server with a real database, and clients that follow its changes."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import orjson
import uvicorn
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from graph.app import create_app
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from graph.subscriptions.shared_subscriptions import SubscriptionGroup
from graph.types.scalars import SCALARS, Cursor
from merganser.server import sockets
from merganser.settings.settings import Settings
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.clients.plain_http import plain_client
from tests.support.servers.http_server import EmbeddedUvicorn
from tests.support.time_limits import HANG_SECONDS

NEW_ACCOUNT_EVENT_COUNT = 6  # journal events of a new account
CHANGES_SUBSCRIPTION = (
    "subscription ($after: Cursor) { changes(after: $after) { cursor events { type cursor } } }"
)
NESTED_CHANGES_SUBSCRIPTION = """subscription ($after: Cursor) { changes(after: $after) {
  cursor hasMore events { __typename type cursor origin user { username }
  ... on MailboxChange { mailboxId path oldPath mailbox { path messageCount unseenCount } }
  ... on MessageChange { messageId uid flags message { subject imap { flags }
    mailbox { path } } } } } }"""
ALIASED_SUBSCRIPTION = """subscription Follow($after: Cursor) { live: changes(after: $after) {
  at: cursor events { ...E } } } fragment E on Change { it: type place: cursor
  ... on MessageChange { message { from { address } size } } }"""
WEBSOCKET_PROTOCOLS: list[Any] = ["graphql-transport-ws"]


def stream_cursor(client: GraphQLClient, position: int) -> str:
    """The cursor after this position in the stream of an account."""
    serialize: Any = SCALARS[Cursor].serialize
    return str(serialize({client.user.id: position}))


async def wait_until(is_true: Any) -> None:
    """Wait until a function returns true."""
    async with asyncio.timeout(HANG_SECONDS):
        while not is_true():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)


async def record_journal_entry(
    client: GraphQLClient, event_type: EventType, ids: list[int], **values: Any
) -> int:
    """Write an entry to the journal of an account; return the position of its last event."""
    environment = client.environment
    async with environment.write_session(client.user.id) as session:
        entry = JournalEntry(event_type, ids, values)
        return await journal.append_journal_entry(
            session, client.user.id, entry, at=environment.now()
        )


@dataclass
class SubscriptionFollower:
    """A subscription over WebSocket or server-sent events, and its results."""

    payloads: list[Any] = field(default_factory=list)  # payloads
    event_ids: list[str] = field(default_factory=list)  # of the server-sent events
    last_event_id: str = ""  # also of an event without a result, as an EventSource keeps it
    id_count: int = 0
    end_frame: Any = None  # the frame or event that ended it
    ws: ClientConnection | None = None
    task: asyncio.Task[None] | None = None

    @property
    def batches(self) -> list[Any]:
        return [payload["data"]["changes"] for payload in self.payloads]

    @property
    def events(self) -> list[Any]:
        return [event for batch in self.batches for event in batch["events"]]

    @property
    def results(self) -> list[Any]:
        """The result of each payload, without the name of the field."""
        results = []
        for payload in self.payloads:
            assert not payload.get("errors"), payload
            (result,) = payload["data"].values()
            results.append(result)
        return results

    @property
    def last_cursor(self) -> str:
        """The cursor of the last batch."""
        return self.batches[-1]["cursor"] if self.payloads else ""

    async def unsubscribe(self) -> None:
        """End the subscription."""
        if self.ws:
            await self.ws.close()
        if self.task:
            self.task.cancel()
            await asyncio.wait([self.task])


@dataclass
class LiveServer:
    """A running server."""

    endpoint: GraphqlEndpoint
    port: int

    @property
    def groups(self) -> list[SubscriptionGroup]:
        return list(self.endpoint.subscription_groups.groups_by_key.values())

    @property
    def subscriber_count(self) -> int:
        """The number of subscribers in all groups."""
        return sum(len(group.members) for group in self.groups)

    async def open_websocket(
        self, client: GraphQLClient | None = None, secret: str = "", host: str = ""
    ) -> ClientConnection:
        """Open a WebSocket connection and sign in, with the secret or the key of the client."""
        url = f"ws://{host or '127.0.0.1'}:{self.port}/graphql"
        ws = await connect(
            url,
            host="127.0.0.1",
            subprotocols=WEBSOCKET_PROTOCOLS,
            compression=None,
            max_size=None,
        )
        token = {"Authorization": f"Bearer {secret or (client.secret if client else '')}"}
        await ws.send(orjson.dumps({"type": "connection_init", "payload": token}).decode())
        assert orjson.loads(await ws.recv())["type"] == "connection_ack"
        return ws

    async def follow(
        self,
        client: GraphQLClient,
        query: str,
        *,
        secret: str = "",
        host: str = "",
        **variables: Any,
    ) -> SubscriptionFollower:
        """Subscribe over a new WebSocket connection."""
        ws = await self.open_websocket(client, secret, host)
        payload = {"query": query, "variables": variables}
        frame = {"type": "subscribe", "id": "1", "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        follower = SubscriptionFollower(ws=ws)
        follower.task = asyncio.create_task(_collect_frames(ws, follower))
        return follower

    async def stream(
        self, client: GraphQLClient, query: str, *, last_event_id: str = "", **variables: Any
    ) -> SubscriptionFollower:
        """Subscribe by server-sent events, with `Last-Event-ID` if an ID is given."""
        follower, is_open = SubscriptionFollower(), asyncio.Event()
        body = {"query": query, "variables": variables}
        follower.last_event_id = last_event_id
        follower.task = asyncio.create_task(
            _collect_sse_events(self.port, client, body, follower, is_open)
        )
        async with asyncio.timeout(HANG_SECONDS):
            await is_open.wait()
        return follower

    async def follow_until_refused(
        self, client: GraphQLClient, query: str, **variables: Any
    ) -> str:
        """Subscribe, and return the error code of the refusal."""
        follower = await self.follow(client, query, **variables)
        await wait_until(lambda: follower.payloads or follower.end_frame)
        errors = (
            follower.payloads[0]["errors"] if follower.payloads else follower.end_frame["payload"]
        )
        await follower.unsubscribe()
        return str(errors[0]["extensions"]["code"])


async def _collect_frames(ws: ClientConnection, follower: SubscriptionFollower) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for text in ws:
            frame = orjson.loads(text)
            if frame["type"] == "next":
                follower.payloads.append(frame["payload"])
            else:
                follower.end_frame = frame


async def _collect_sse_events(
    port: int,
    client: GraphQLClient,
    body: Any,
    follower: SubscriptionFollower,
    is_open: asyncio.Event,
) -> None:
    headers = {**client.headers, "Accept": "text/event-stream"}
    if follower.last_event_id:
        headers["Last-Event-ID"] = follower.last_event_id
    async with (
        plain_client(timeout=HANG_SECONDS) as http,
        http.stream(
            "POST", f"http://127.0.0.1:{port}/graphql", json=body, headers=headers
        ) as response,
    ):
        is_open.set()
        # a server that stops may cut the stream, as it may close a WebSocket
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
            await _read_sse_events(response, follower)


async def _read_sse_events(response: httpx.Response, follower: SubscriptionFollower) -> None:
    kind = event_id = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            event_id = follower.last_event_id = value
            follower.id_count += 1
        elif name == "event":
            kind = value
        elif name == "data" and kind == "next":
            follower.event_ids.append(event_id)
            follower.payloads.append(json.loads(value))
        elif not line:
            event_id = ""
    follower.end_frame = kind


@contextlib.asynccontextmanager
async def run_live_server(
    environment: Environment,
    spool: Path,
    settings: Settings | None = None,
    endpoint_settings: EndpointSettings | None = None,
    port: int = 0,
) -> AsyncGenerator[LiveServer]:
    """Run the whole app on this port or on a free one, as `merganser serve` does."""
    app = create_app(environment, spool_folder=spool, settings=endpoint_settings)
    (endpoint,) = (
        route.endpoint
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.endpoint, GraphqlEndpoint)
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="off",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = EmbeddedUvicorn(config)
    unread_timeout = (settings or Settings()).http_write_timeout
    bound_sockets = sockets.open_listening_sockets(
        "HTTP", f"127.0.0.1:{port}", unread_timeout=unread_timeout
    )
    task = asyncio.create_task(server.serve(bound_sockets))
    await wait_until(lambda: server.started)
    try:
        yield LiveServer(endpoint, bound_sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await task
        await app.end_subscriptions()


class SlowClient:
    """A client with small buffers that reads only on request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = socket.socket()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.connection.connect(("127.0.0.1", port))
        self.connection.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    async def subscribe(self, client: GraphQLClient, query: str, *, by_websocket: bool) -> None:
        """Subscribe over WebSocket or by server-sent events."""
        request = {"query": query}
        if not by_websocket:
            body = orjson.dumps(request)
            await self._send(
                b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n"
                b"Content-Type: application/json\r\nAuthorization: Bearer %b\r\n"
                b"Content-Length: %d\r\n\r\n%b"
                % (self.port, client.secret.encode(), len(body), body)
            )
            await self._read_until(b"\r\n\r\n")
            return
        await self._send(
            b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
            b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n" % self.port
        )
        await self._read_until(b"\r\n\r\n")
        token = {"Authorization": f"Bearer {client.secret}"}
        for kind, payload in (("connection_init", token), ("subscribe", request)):
            frame = orjson.dumps({"type": kind, "id": "1", "payload": payload})
            size = bytes([0x80 | len(frame)])
            if len(frame) > 125:
                size = b"\xfe" + len(frame).to_bytes(2, "big")
            await self._send(b"\x81" + size + bytes(4) + frame)

    async def read_until(self, end: bytes) -> bytes:
        """Read until these bytes."""
        return await self._read_until(end)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def _read_until(self, end: bytes) -> bytes:
        received = bytearray()
        async with asyncio.timeout(HANG_SECONDS):
            while end not in received[-len(end) - (1 << 16) :]:
                received += await asyncio.get_running_loop().sock_recv(self.connection, 1 << 16)
        return bytes(received)
