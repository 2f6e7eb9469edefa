"""A real server over a real store, and those who follow its changes."""

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
from graph.http.graphql_endpoint import GraphqlEndpoint
from graph.subscriptions.shared_subscriptions import SubscriptionGroup
from graph.types.scalars import SCALARS, Cursor
from merganser.server import sockets
from merganser.settings.settings import Settings
from models.events import journal
from models.events.journal import ChangeKind, JournalEntry
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.servers.http_server import Quiet

MADE = 6  # events of a new account
PLAIN = "subscription ($after: Cursor) { changes(after: $after) { cursor events { kind cursor } } }"
NESTED = """subscription ($after: Cursor) { changes(after: $after) { cursor hasMore events {
  __typename kind cursor origin user { username }
  ... on MailboxChange { mailboxId path oldPath mailbox { path total unseen } }
  ... on MessageChange { messageId uid flags message { subject flags mailbox { path } } } } } }"""
RENAMED = """subscription Follow($after: Cursor) { live: changes(after: $after) { at: cursor
  events { ...E } } } fragment E on Change { it: kind place: cursor
  ... on MessageChange { message { from { address } size } } }"""
PROTOCOLS: list[Any] = ["graphql-transport-ws"]


def cursor(client: Client, number: int) -> str:
    """The cursor after this event of an account."""
    write: Any = SCALARS[Cursor].serialize
    return str(write({client.user.id: number}))


async def until(true: Any, seconds: float = 5) -> None:
    """Wait until a function says yes."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for rings no bell
            await asyncio.sleep(0.005)


async def note(client: Client, kind: ChangeKind, ids: list[int], **facts: Any) -> int:
    """Write an entry to the journal of an account; the number of its last event."""
    world = client.world
    async with world.write_session(client.user.id) as session:
        entry = JournalEntry(kind, ids, facts)
        return await journal.record_entry(session, client.user.id, entry, at=world.now())


@dataclass
class Follower:
    """One subscription by a socket or as server-sent events, and what came of it."""

    got: list[Any] = field(default_factory=list)  # payloads
    over: Any = None  # what ended it
    ws: ClientConnection | None = None
    task: asyncio.Task[None] | None = None

    @property
    def batches(self) -> list[Any]:
        return [payload["data"]["changes"] for payload in self.got]

    @property
    def events(self) -> list[Any]:
        return [event for batch in self.batches for event in batch["events"]]

    @property
    def results(self) -> list[Any]:
        """What came, whatever the field is called."""
        found = []
        for payload in self.got:
            assert not payload.get("errors"), payload
            (result,) = payload["data"].values()
            found.append(result)
        return found

    @property
    def at(self) -> str:
        return self.batches[-1]["cursor"] if self.got else ""

    async def leave(self) -> None:
        if self.ws:
            await self.ws.close()
        if self.task:
            self.task.cancel()
            await asyncio.wait([self.task])


@dataclass
class House:
    """The server."""

    endpoint: GraphqlEndpoint
    port: int

    @property
    def groups(self) -> list[SubscriptionGroup]:
        return list(self.endpoint.subscription_groups.groups_by_key.values())

    @property
    def seats(self) -> int:
        return sum(len(group.members) for group in self.groups)

    async def socket(self, client: Client, secret: str = "", host: str = "") -> ClientConnection:
        url = f"ws://{host or '127.0.0.1'}:{self.port}/graphql"
        ws = await connect(url, host="127.0.0.1", subprotocols=PROTOCOLS, compression=None)
        token = {"Authorization": f"Bearer {secret or client.secret}"}
        await ws.send(orjson.dumps({"type": "connection_init", "payload": token}).decode())
        assert orjson.loads(await ws.recv())["type"] == "connection_ack"
        return ws

    async def follow(
        self, client: Client, query: str, *, secret: str = "", host: str = "", **variables: Any
    ) -> Follower:
        """Subscribe by a socket of its own."""
        ws = await self.socket(client, secret, host)
        payload = {"query": query, "variables": variables}
        frame = {"type": "subscribe", "id": "1", "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        found = Follower(ws=ws)
        found.task = asyncio.create_task(_read(ws, found))
        return found

    async def stream(self, client: Client, query: str, **variables: Any) -> Follower:
        """Subscribe by server-sent events."""
        found, opened = Follower(), asyncio.Event()
        body = {"query": query, "variables": variables}
        found.task = asyncio.create_task(_events(self.port, client, body, found, opened))
        async with asyncio.timeout(5):
            await opened.wait()
        return found

    async def refused(self, client: Client, query: str, **variables: Any) -> str:
        """The code with which a subscription is refused."""
        follower = await self.follow(client, query, **variables)
        await until(lambda: follower.got or follower.over)
        said = follower.got[0]["errors"] if follower.got else follower.over["payload"]
        await follower.leave()
        return str(said[0]["extensions"]["code"])


async def _read(ws: ClientConnection, found: Follower) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for text in ws:
            frame = orjson.loads(text)
            if frame["type"] == "next":
                found.got.append(frame["payload"])
            else:
                found.over = frame


async def _events(
    port: int, client: Client, body: Any, found: Follower, opened: asyncio.Event
) -> None:
    headers = {**client.headers, "Accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(timeout=30) as http,
        http.stream(
            "POST", f"http://127.0.0.1:{port}/graphql", json=body, headers=headers
        ) as answer,
    ):
        opened.set()
        kind = ""
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "next":
                found.got.append(json.loads(value))
        found.over = kind


@contextlib.asynccontextmanager
async def house(
    world: Environment, spool: Path, settings: Settings | None = None
) -> AsyncGenerator[House]:
    """The whole app on a port, as `merganser serve` listens."""
    app = create_app(world, spool_folder=spool)
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
    server = Quiet(config)
    patience = (settings or Settings()).write_timeout
    bound = sockets.bind_sockets("HTTP", "127.0.0.1:0", unread_timeout=patience)
    running = asyncio.create_task(server.serve(bound))
    await until(lambda: server.started)
    try:
        yield House(endpoint, bound[0].getsockname()[1])
    finally:
        server.should_exit = True
        await running
        await app.end_subscriptions()


class Slow:
    """A peer with small buffers, who reads nothing until it is told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def ask(self, client: Client, query: str, *, by_socket: bool) -> None:
        """Subscribe."""
        question = {"query": query}
        if not by_socket:
            body = orjson.dumps(question)
            await self._send(
                b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n"
                b"Content-Type: application/json\r\nAuthorization: Bearer %b\r\n"
                b"Content-Length: %d\r\n\r\n%b"
                % (self.port, client.secret.encode(), len(body), body)
            )
            await self._until(b"\r\n\r\n")
            return
        await self._send(
            b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
            b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n" % self.port
        )
        await self._until(b"\r\n\r\n")
        token = {"Authorization": f"Bearer {client.secret}"}
        for kind, payload in (("connection_init", token), ("subscribe", question)):
            frame = orjson.dumps({"type": kind, "id": "1", "payload": payload})
            size = bytes([0x80 | len(frame)])
            if len(frame) > 125:
                size = b"\xfe" + len(frame).to_bytes(2, "big")
            await self._send(b"\x81" + size + bytes(4) + frame)

    async def read(self, end: bytes) -> bytes:
        """Read on until this comes."""
        return await self._until(end)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def _until(self, end: bytes) -> bytes:
        got = bytearray()
        async with asyncio.timeout(10):
            while end not in got[-len(end) - (1 << 16) :]:
                got += await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)
        return bytes(got)
