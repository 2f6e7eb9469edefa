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

from bench.change_stream.account_replica import FIELDS, Event, Replica
from bench.servers.ports import HOST

BROKEN = (OSError, httpx.TransportError, WebSocketException, TimeoutError)
LATER = {
    "DEADLINE_EXCEEDED",
    "RATE_LIMITED",
    "UNAVAILABLE",
}  # GraphQL error codes of an overloaded server
AWAY = {429, 503}
FOLLOW = f"subscription ($after: Cursor) {{ changes(after: $after) {{ {FIELDS} }} }}"
ASK = f"""query ($after: Cursor!, $first: Int!) {{
  changes(after: $after, first: $first) {{ hasMore {FIELDS} }} }}"""
PAGE = """query ($after: String) { viewer { user { id cursor mailboxes(showHidden: true) { id path }
  messages(first: 250, after: $after) { pageInfo { hasNextPage endCursor }
    nodes { id uid modseq flags mailbox { id } } } } } }"""
NOW = "{ viewer { user { cursor } } }"
COUNTERS = "subscription { counters { id total unseen } }"
PATIENCE = 20.0  # seconds for a response, and for the first part of a stream
SILENCE = 40.0  # seconds between two parts of a stream
SMALL = (socketlib.SOL_SOCKET, socketlib.SO_RCVBUF, 4096)  # bytes

Batches = AsyncGenerator[tuple[list[Event], str]]


class Broken(Exception):
    """The server has ended the connection, or refused temporarily. A retry may succeed."""


class Refused(Exception):
    """The server has returned an error that it must never return."""


@dataclass(frozen=True, slots=True)
class Place:
    """The port of a server, and the account that is followed with its credential."""

    port: int
    secret: str
    user: str  # id of the account that is followed

    @property
    def url(self) -> str:
        """The base URL of its HTTP listener."""
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The header that authenticates a request."""
        return {"Authorization": f"Bearer {self.secret}"}


def checked(payload: Any) -> Any:
    """Return the data of a response.

    Raises ConnectionEnded for temporary errors, UnexpectedResponse for all others.
    """
    errors = payload.get("errors")
    if errors:
        codes = {(error.get("extensions") or {}).get("code") for error in errors}
        raise (Broken if codes <= LATER else Refused)(orjson.dumps(errors).decode()[:500])
    return payload["data"]


async def ask(http: httpx.AsyncClient, document: str, **variables: Any) -> Any:
    """Return the data of a GraphQL request. Raises ConnectionEnded or UnexpectedResponse."""
    body = {"query": document, "variables": variables}
    answer = await http.post("/graphql", json=body)
    if answer.status_code in AWAY:
        raise Broken(str(answer.status_code))
    return checked(answer.json())


@asynccontextmanager
async def asking(place: Place, *, slow: bool = False) -> AsyncGenerator[httpx.AsyncClient]:
    """Open an HTTP client. The kernel buffers little for a slow one."""
    transport = httpx.AsyncHTTPTransport(
        verify=False,  # without TLS, whose context would cost most of the time
        socket_options=[SMALL] if slow else None,
    )
    async with httpx.AsyncClient(
        base_url=place.url, headers=place.headers, timeout=PATIENCE, transport=transport
    ) as http:
        yield http


async def snapshot(http: httpx.AsyncClient) -> Replica:
    """Read the account: cursor and first page with one query, further pages with more."""
    made: Replica | None = None
    after = None
    while True:
        user = (await ask(http, PAGE, after=after))["viewer"]["user"]
        if made is None:
            made = Replica(user["cursor"], {one["id"]: one["path"] for one in user["mailboxes"]})
        for one in user["messages"]["nodes"]:
            if one["mailbox"]:  # the message may be deleted during the request
                place = (one["mailbox"]["id"], one["uid"])
                made.letters[one["id"]] = (*place, tuple(sorted(one["flags"])), one["modseq"])
        if not user["messages"]["pageInfo"]["hasNextPage"]:
            break
        after = user["messages"]["pageInfo"]["endCursor"]
    now = Replica((await ask(http, NOW))["viewer"]["user"]["cursor"])
    made.sure = now.at
    return made


@asynccontextmanager
async def socket(place: Place, *, slow: bool = False) -> AsyncGenerator[ClientConnection]:
    """Open a WebSocket and authenticate it. Raises ConnectionEnded if it is refused."""
    more: dict[str, Any] = {}
    async with asyncio.timeout(PATIENCE):
        if slow:
            plain = socketlib.socket()
            plain.setsockopt(*SMALL)
            plain.setblocking(False)
            await asyncio.get_running_loop().sock_connect(plain, (HOST, place.port))
            more = {"max_queue": 1, "sock": plain}
        ws = await connect(
            f"ws://{HOST}:{place.port}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            compression=None,
            max_size=None,
            proxy=None,
            close_timeout=1,
            **more,
        )
    try:
        await ws.send(orjson.dumps({"type": "connection_init", "payload": place.headers}).decode())
        async with asyncio.timeout(PATIENCE):
            if orjson.loads(await ws.recv())["type"] != "connection_ack":
                raise Broken("not let in")
        yield ws
    finally:
        ws.transport.abort()  # without a close frame, as a killed client


async def told(
    place: Place, document: str, *, slow: bool = False, **variables: Any
) -> AsyncGenerator[Any]:
    """Yield the data of a subscription over a WebSocket."""
    async with socket(place, slow=slow) as ws:
        payload = {"query": document, "variables": variables}
        frame = {"id": "1", "type": "subscribe", "payload": payload}
        await ws.send(orjson.dumps(frame).decode())
        while True:
            frame = orjson.loads(await ws.recv())
            if frame["type"] == "next":
                yield checked(frame["payload"])
            elif frame["type"] == "error":
                checked({"errors": frame["payload"]})
            elif frame["type"] == "complete":
                raise Broken("complete")


async def by_socket(place: Place, at: str, _random: Random, *, slow: bool) -> Batches:
    """Follow by graphql-transport-ws."""
    async with aclosing(told(place, FOLLOW, slow=slow, after=at)) as answers:
        async for data in answers:
            yield data["changes"]["events"], data["changes"]["cursor"]


async def by_events(place: Place, at: str, random: Random, *, slow: bool) -> Batches:
    """Follow by GraphQL over SSE, with the cursor in the variables or in Last-Event-ID."""
    headers, variables = {"Accept": "text/event-stream"}, dict[str, str]()
    if random.random() < 0.5:  # noqa: PLR2004 - each way as often
        headers["Last-Event-ID"] = at
    else:
        variables["after"] = at
    body = {"query": FOLLOW, "variables": variables}
    async with (
        asking(place, slow=slow) as http,
        http.stream("POST", "/graphql", json=body, headers=headers, timeout=SILENCE) as answer,
        aclosing(_blocks(answer)) as blocks,
    ):
        async for block in blocks:
            if block.get("event") == "next":
                batch = checked(orjson.loads(block["data"]))["changes"]
                if block["id"] != batch["cursor"]:
                    raise Refused(f"the id {block['id']} of a batch with {batch['cursor']}")
                yield batch["events"], batch["cursor"]
    raise Broken("the stream has ended")


async def by_updates(place: Place, at: str, _random: Random, *, slow: bool) -> Batches:
    """Follow by plain server-sent events, one change per event."""
    path, headers = f"/rest/users/{place.user}/updates", {"Last-Event-ID": at}
    async with (
        asking(place, slow=slow) as http,
        http.stream("GET", path, headers=headers, timeout=SILENCE) as answer,
        aclosing(_blocks(answer)) as blocks,
    ):
        async for block in blocks:
            if block.get("event") == "error":
                checked({"errors": [orjson.loads(block["data"])]})
            elif "data" in block:
                yield [_plain(orjson.loads(block["data"]))], block["id"]
    raise Broken("the stream has ended")


def _plain(event: Any) -> Event:
    """Return an event in the form of the GraphQL transports."""
    if event["kind"].startswith("MAILBOX_"):
        return {**event, "folder": event["mailboxId"], "mailbox": None}
    known: Event = event
    return known


async def _blocks(answer: httpx.Response) -> AsyncGenerator[dict[str, str]]:
    """Yield the fields of each SSE event. Raises ConnectionEnded or UnexpectedResponse."""
    if answer.status_code != 200:  # noqa: PLR2004
        problem = Broken if answer.status_code in AWAY else Refused
        raise problem(f"{answer.status_code}: {(await answer.aread())[:300]!r}")
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if not line and fields:
            yield fields
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")


async def by_asking(place: Place, at: str, random: Random, *, slow: bool) -> Batches:
    """Follow by polling, with a random page size."""
    async with asking(place) as http:
        while True:
            first = random.randint(1, 1000)
            batch = (await ask(http, ASK, after=at, first=first))["changes"]
            if batch["events"] or batch["cursor"] != at:
                yield batch["events"], batch["cursor"]
            at = batch["cursor"]
            if not batch["hasMore"]:
                await asyncio.sleep(0.5 if slow else 0.1)


ROADS = {
    "socket": by_socket,
    "events": by_events,
    "updates": by_updates,
    "asking": by_asking,
}
