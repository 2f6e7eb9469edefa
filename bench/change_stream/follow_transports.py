"""Transports that follow changes: WebSocket, GraphQL over SSE, plain SSE and polling."""

import asyncio
import socket as socketlib
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from bench.change_stream.account_replica import (
    EVENT_FIELDS,
    AccountReplica,
    EventFields,
    MessageState,
)
from bench.servers.ports import HOST

RETRYABLE_ERRORS = (OSError, httpx.TransportError, WebSocketException, TimeoutError)
RETRYABLE_CODES = {
    "DEADLINE_EXCEEDED",
    "RATE_LIMITED",
    "UNAVAILABLE",
}  # GraphQL error codes of an overloaded server
RETRYABLE_STATUS = {429, 503}
CHANGES_SUBSCRIPTION = (
    f"subscription ($after: Cursor) {{ changes(after: $after) {{ {EVENT_FIELDS} }} }}"
)
CHANGES_QUERY = f"""query ($after: Cursor!, $first: Int!) {{
  changes(after: $after, first: $first) {{ hasMore {EVENT_FIELDS} }} }}"""
SNAPSHOT_QUERY = """query ($after: String) { viewer { user { id cursor
  mailboxes(first: 1500, filter: {showHidden: true}) { nodes { id path } }
  messages(first: 250, after: $after) { pageInfo { hasNextPage endCursor }
    nodes { id imap { uid modseq flags } mailbox { id } } } } } }"""
CURSOR_QUERY = "{ viewer { user { cursor } } }"
COUNTERS_SUBSCRIPTION = "subscription { mailboxCounters { id messageCount unseenCount } }"
RESPONSE_TIMEOUT = 20.0  # seconds for a response, and for the first part of a stream
HEARTBEAT_TIMEOUT = 40.0  # seconds between two parts of a stream
SMALL_RECEIVE_BUFFER = (socketlib.SOL_SOCKET, socketlib.SO_RCVBUF, 4096)  # bytes

EventBatches = AsyncGenerator[tuple[list[EventFields], str]]


class ConnectionEnded(Exception):
    """The server has ended the connection, or refused temporarily. A retry may succeed."""


class UnexpectedResponse(Exception):
    """The server has returned an error that it must never return."""


@dataclass(frozen=True, slots=True)
class AccountEndpoint:
    """The port of a server, and the account that is followed with its credential."""

    port: int
    api_key: str
    user_id: str  # id of the account that is followed

    @property
    def url(self) -> str:
        """The base URL of its HTTP listener."""
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The header that authenticates a request."""
        return {"Authorization": f"Bearer {self.api_key}"}


def require_data(response: Any) -> Any:
    """Return the data of a response.

    Raises ConnectionEnded for temporary errors, UnexpectedResponse for all others.
    """
    errors = response.get("errors")
    if errors:
        codes = {(error.get("extensions") or {}).get("code") for error in errors}
        raise (ConnectionEnded if codes <= RETRYABLE_CODES else UnexpectedResponse)(
            orjson.dumps(errors).decode()[:500]
        )
    return response["data"]


async def request_data(client: httpx.AsyncClient, document: str, **variables: Any) -> Any:
    """Return the data of a GraphQL request. Raises ConnectionEnded or UnexpectedResponse."""
    body = {"query": document, "variables": variables}
    answer = await client.post("/graphql", json=body)
    if answer.status_code in RETRYABLE_STATUS:
        raise ConnectionEnded(str(answer.status_code))
    return require_data(answer.json())


@asynccontextmanager
async def open_http_client(
    endpoint: AccountEndpoint, *, is_slow: bool = False
) -> AsyncGenerator[httpx.AsyncClient]:
    """Open an HTTP client. The kernel buffers little for a slow one."""
    transport = httpx.AsyncHTTPTransport(
        verify=False,  # without TLS, whose context would cost most of the time
        socket_options=[SMALL_RECEIVE_BUFFER] if is_slow else None,
    )
    async with httpx.AsyncClient(
        base_url=endpoint.url,
        headers=endpoint.headers,
        timeout=RESPONSE_TIMEOUT,
        transport=transport,
    ) as http:
        yield http


async def read_snapshot(client: httpx.AsyncClient) -> AccountReplica:
    """Read the account: cursor and first page with one query, further pages with more."""
    replica: AccountReplica | None = None
    after = None
    while True:
        user = (await request_data(client, SNAPSHOT_QUERY, after=after))["viewer"]["user"]
        if replica is None:
            replica = AccountReplica(
                user["cursor"], {one["id"]: one["path"] for one in user["mailboxes"]["nodes"]}
            )
        for one in user["messages"]["nodes"]:
            if one["mailbox"]:  # the message may be deleted during the request
                replica.message_states[one["id"]] = MessageState(
                    one["mailbox"]["id"],
                    one["imap"]["uid"],
                    tuple(sorted(one["imap"]["flags"])),
                    one["imap"]["modseq"],
                )
        if not user["messages"]["pageInfo"]["hasNextPage"]:
            break
        after = user["messages"]["pageInfo"]["endCursor"]
    now = AccountReplica((await request_data(client, CURSOR_QUERY))["viewer"]["user"]["cursor"])
    replica.exact_from = now.event_number
    return replica


@asynccontextmanager
async def open_websocket(
    endpoint: AccountEndpoint, *, is_slow: bool = False
) -> AsyncGenerator[ClientConnection]:
    """Open a WebSocket and authenticate it. Raises ConnectionEnded if it is refused."""
    options: dict[str, Any] = {}
    async with asyncio.timeout(RESPONSE_TIMEOUT):
        if is_slow:
            tcp_socket = socketlib.socket()
            tcp_socket.setsockopt(*SMALL_RECEIVE_BUFFER)
            tcp_socket.setblocking(False)
            await asyncio.get_running_loop().sock_connect(tcp_socket, (HOST, endpoint.port))
            options = {"max_queue": 1, "sock": tcp_socket}
        ws = await connect(
            f"ws://{HOST}:{endpoint.port}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            compression=None,
            max_size=None,
            proxy=None,
            close_timeout=1,
            **options,
        )
    try:
        await ws.send(
            orjson.dumps({"type": "connection_init", "payload": endpoint.headers}).decode()
        )
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            if orjson.loads(await ws.recv())["type"] != "connection_ack":
                raise ConnectionEnded("not let in")
        yield ws
    finally:
        ws.transport.abort()  # without a close frame, as a killed client


async def subscribe(
    endpoint: AccountEndpoint, document: str, *, is_slow: bool = False, **variables: Any
) -> AsyncGenerator[Any]:
    """Yield the data of a subscription over a WebSocket."""
    async with open_websocket(endpoint, is_slow=is_slow) as ws:
        payload = {"query": document, "variables": variables}
        frame = {"id": "1", "type": "subscribe", "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        while True:
            frame = orjson.loads(await ws.recv())
            if frame["type"] == "next":
                yield require_data(frame["payload"])
            elif frame["type"] == "error":
                require_data({"errors": frame["payload"]})
            elif frame["type"] == "complete":
                raise ConnectionEnded("complete")


async def follow_by_websocket(
    endpoint: AccountEndpoint, cursor: str, _random: Random, *, is_slow: bool
) -> EventBatches:
    """Follow by graphql-transport-ws."""
    async with aclosing(
        subscribe(endpoint, CHANGES_SUBSCRIPTION, is_slow=is_slow, after=cursor)
    ) as answers:
        async for data in answers:
            yield data["changes"]["events"], data["changes"]["cursor"]


async def follow_by_sse(
    endpoint: AccountEndpoint, cursor: str, random: Random, *, is_slow: bool
) -> EventBatches:
    """Follow by GraphQL over SSE, with the cursor in the variables or in Last-Event-ID."""
    headers, variables = {"Accept": "text/event-stream"}, dict[str, str]()
    if random.random() < 0.5:  # noqa: PLR2004 - each way as often
        headers["Last-Event-ID"] = cursor
    else:
        variables["after"] = cursor
    body = {"query": CHANGES_SUBSCRIPTION, "variables": variables}
    async with (
        open_http_client(endpoint, is_slow=is_slow) as http,
        http.stream(
            "POST", "/graphql", json=body, headers=headers, timeout=HEARTBEAT_TIMEOUT
        ) as answer,
        aclosing(_read_sse_blocks(answer)) as blocks,
    ):
        async for block in blocks:
            if block.get("event") == "next":
                batch = require_data(orjson.loads(block["data"]))["changes"]
                if block["id"] != batch["cursor"]:
                    raise UnexpectedResponse(
                        f"the id {block['id']} of a batch with {batch['cursor']}"
                    )
                yield batch["events"], batch["cursor"]
    raise ConnectionEnded("the stream has ended")


async def follow_by_plain_sse(
    endpoint: AccountEndpoint, cursor: str, _random: Random, *, is_slow: bool
) -> EventBatches:
    """Follow by plain server-sent events, one change per event."""
    path, headers = f"/rest/users/{endpoint.user_id}/updates", {"Last-Event-ID": cursor}
    async with (
        open_http_client(endpoint, is_slow=is_slow) as http,
        http.stream("GET", path, headers=headers, timeout=HEARTBEAT_TIMEOUT) as answer,
        aclosing(_read_sse_blocks(answer)) as blocks,
    ):
        async for block in blocks:
            if block.get("event") == "error":
                require_data({"errors": [orjson.loads(block["data"])]})
            elif "data" in block:
                yield [_graphql_event_from_plain(orjson.loads(block["data"]))], block["id"]
    raise ConnectionEnded("the stream has ended")


def _graphql_event_from_plain(event: Any) -> EventFields:
    """Return an event in the form of the GraphQL transports."""
    if event["type"].startswith("MAILBOX_"):
        return {**event, "folder": event["mailboxId"], "mailbox": None}
    known: EventFields = event
    return known


async def _read_sse_blocks(response: httpx.Response) -> AsyncGenerator[dict[str, str]]:
    """Yield the fields of each SSE event. Raises ConnectionEnded or UnexpectedResponse."""
    if response.status_code != 200:  # noqa: PLR2004
        problem = (
            ConnectionEnded if response.status_code in RETRYABLE_STATUS else UnexpectedResponse
        )
        raise problem(f"{response.status_code}: {(await response.aread())[:300]!r}")
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and fields:
            yield fields
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


async def follow_by_polling(
    endpoint: AccountEndpoint, cursor: str, random: Random, *, is_slow: bool
) -> EventBatches:
    """Follow by polling, with a random page size."""
    async with open_http_client(endpoint) as http:
        while True:
            first = random.randint(1, 1000)
            batch = (await request_data(http, CHANGES_QUERY, after=cursor, first=first))["changes"]
            if batch["events"] or batch["cursor"] != cursor:
                yield batch["events"], batch["cursor"]
            cursor = batch["cursor"]
            if not batch["hasMore"]:
                await asyncio.sleep(0.5 if is_slow else 0.1)


TRANSPORTS = {
    "socket": follow_by_websocket,
    "events": follow_by_sse,
    "updates": follow_by_plain_sse,
    "asking": follow_by_polling,
}
