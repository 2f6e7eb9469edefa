"""The roads by which changes are followed: socket, events, plain events, and asking again."""

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

BROKEN = (OSError, httpx.TransportError, WebSocketException, TimeoutError)  # and to be tried again
LATER = {
    "DEADLINE_EXCEEDED",
    "RATE_LIMITED",
    "UNAVAILABLE",
}  # codes of a server with too much to do
AWAY = {429, 503}  # HTTP says the same
FOLLOW = f"subscription ($after: Cursor) {{ changes(after: $after) {{ {FIELDS} }} }}"
ASK = f"""query ($after: Cursor!, $first: Int!) {{
  changes(after: $after, first: $first) {{ hasMore {FIELDS} }} }}"""
PAGE = """query ($after: String) { viewer { user { id cursor mailboxes(showHidden: true) { id path }
  messages(first: 250, after: $after) { pageInfo { hasNextPage endCursor }
    nodes { id uid modseq flags mailbox { id } } } } } }"""
NOW = "{ viewer { user { cursor } } }"
COUNTERS = "subscription { counters { id total unseen } }"
PATIENCE = 20.0  # seconds for one answer, and for the beginning of a stream
SILENCE = 40.0  # seconds in which a stream says at least that it lives
SMALL = (socketlib.SOL_SOCKET, socketlib.SO_RCVBUF, 4096)  # bytes that the kernel takes for one

Batches = AsyncGenerator[tuple[list[Event], str]]


class Broken(Exception):  # a connection is, and the next may be whole
    """The server has ended the conversation, and may be asked again."""


class Refused(Exception):  # by the server
    """The server has said something that it may never say."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens, and as whom it is asked."""

    port: int
    secret: str
    user: str  # id of the account that is followed

    @property
    def url(self) -> str:
        """Of its HTTP."""
        return f"http://{HOST}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What signs a request."""
        return {"Authorization": f"Bearer {self.secret}"}


def checked(payload: Any) -> Any:
    """The data of an answer. Broken where it may be asked again, Refused for all other errors."""
    errors = payload.get("errors")
    if errors:
        codes = {(error.get("extensions") or {}).get("code") for error in errors}
        raise (Broken if codes <= LATER else Refused)(orjson.dumps(errors).decode()[:500])
    return payload["data"]


async def ask(http: httpx.AsyncClient, document: str, **variables: Any) -> Any:
    """The data that answers a document. Broken, Refused."""
    body = {"query": document, "variables": variables}
    answer = await http.post("/graphql", json=body)
    if answer.status_code in AWAY:
        raise Broken(str(answer.status_code))
    return checked(answer.json())


@asynccontextmanager
async def asking(place: Place, *, slow: bool = False) -> AsyncGenerator[httpx.AsyncClient]:
    """A connection by HTTP; the kernel of a slow one takes little ahead."""
    transport = httpx.AsyncHTTPTransport(
        verify=False,  # there is no TLS, and a context for it would cost most of a request
        socket_options=[SMALL] if slow else None,
    )
    async with httpx.AsyncClient(
        base_url=place.url, headers=place.headers, timeout=PATIENCE, transport=transport
    ) as http:
        yield http


async def snapshot(http: httpx.AsyncClient) -> Replica:
    """The account as it is now: cursor and state are of one query, its further pages of more."""
    made: Replica | None = None
    after = None
    while True:
        user = (await ask(http, PAGE, after=after))["viewer"]["user"]
        if made is None:
            made = Replica(user["cursor"], {one["id"]: one["path"] for one in user["mailboxes"]})
        for one in user["messages"]["nodes"]:
            if one["mailbox"]:  # it may have gone between the page and its folders
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
    """A socket that is signed in."""
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
        ws.transport.abort()  # without a word, as a client that is killed


async def told(
    place: Place, document: str, *, slow: bool = False, **variables: Any
) -> AsyncGenerator[Any]:
    """The data of what a subscription says, by a socket."""
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
    """Follow by server-sent events; where it goes on stands in the document or the header."""
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
    """Follow by plain server-sent events, each change for itself."""
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
    """The event as the other roads tell it."""
    if event["kind"].startswith("MAILBOX_"):
        return {**event, "folder": event["mailboxId"], "mailbox": None}
    known: Event = event
    return known


async def _blocks(answer: httpx.Response) -> AsyncGenerator[dict[str, str]]:
    """What stands between two empty lines, field by field."""
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
    """Ask again and again what has happened, some events at a time."""
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
