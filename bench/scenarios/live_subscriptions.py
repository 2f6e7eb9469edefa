"""Measure the latency of events and the cost of subscribers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.figures.measurements import Fact, percentile
from bench.load.http_client import Target, once
from bench.load.lmtp_client import Neighbour
from bench.servers.merganser_process import cpu, memory, settled
from bench.servers.ports import HOST

EVENTS = "subscription { changes { cursor events { kind ... on MessageChange { messageId } } } }"
PAUSE = 0.08  # seconds, longer than the window of an event batch
TOLD = 10
LONGEST = 30.0  # seconds
OPENING = 20
SLOW = 10  # subscribers that read nothing
LARGE = (
    "subscription { changes { cursor events { kind ... on MessageChange { message { text } } } } }"
)
BEHIND = """query ($after: Cursor!) { changes(after: $after, first: 1000) { cursor hasMore
  events { kind cursor ... on MessageChange { messageId mailboxId uid flags modseq } } } }"""
NEXT = b'"type":"next"'
CAUGHT_UP = "changes read by one who is far behind"
HELLO = (
    b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)


class Listener(asyncio.Protocol):
    """A cheap WebSocket subscriber that only records when an event arrives."""

    transport: asyncio.Transport

    def __init__(self, target: Target, query: str = EVENTS) -> None:
        self.target = target
        self.query = query
        self.state = 0
        self.asked = asyncio.get_running_loop().create_future()
        self.heard = b""
        self.came = self.expect()

    def expect(self) -> asyncio.Future[float]:
        """Return a future for the time at which the next event arrives."""
        self.came = asyncio.get_running_loop().create_future()
        return self.came

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the WebSocket upgrade request."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(HELLO % self.target.port)

    def data_received(self, data: bytes) -> None:
        """Authenticate, then subscribe, then record the time of events."""
        self.state += 1
        if self.state == 1:
            token = {"Authorization": f"Bearer {self.target.secret}"}
            self._say("connection_init", payload=token)
        elif self.state == 2:  # noqa: PLR2004 - connection_ack
            self._say("subscribe", id="1", payload={"query": self.query})
            self.asked.set_result(None)
        elif NEXT in data and not self.came.done():
            self.heard = data
            self.came.set_result(time.perf_counter())

    def _say(self, kind: str, **more: object) -> None:
        frame = orjson.dumps({"type": kind, **more})
        size = len(frame)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)  # noqa: PLR2004
        self.transport.write(b"\x81" + head + bytes(4) + frame)


async def listening(targets: Sequence[Target], query: str) -> list[Listener]:
    """Open a subscriber with its own WebSocket for each target."""
    loop, made = asyncio.get_running_loop(), list[Listener]()
    for first in range(0, len(targets), OPENING):
        some = [
            loop.create_connection(partial(Listener, target, query), HOST, target.port)
            for target in targets[first : first + OPENING]
        ]
        new = [listener for _, listener in await asyncio.gather(*some)]
        await asyncio.gather(*(listener.asked for listener in new))
        made += new
    return made


@asynccontextmanager
async def subscribed(target: Target) -> AsyncGenerator[ClientConnection]:
    """Open a WebSocket that is subscribed to the account's changes.

    Raises RuntimeError if authentication fails.
    """
    url = f"ws://{HOST}:{target.port}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(url, subprotocols=protocols, compression=None, ping_interval=None) as ws:
        sign = {"Authorization": f"Bearer {target.secret}"}
        await ws.send(orjson.dumps({"type": "connection_init", "payload": sign}).decode())
        if orjson.loads(await ws.recv())["type"] != "connection_ack":
            raise RuntimeError("the socket was not let in")
        ask = {"id": "1", "type": "subscribe", "payload": {"query": EVENTS}}
        await ws.send(orjson.dumps(ask).decode())
        yield ws


async def latency(
    target: Target, neighbour: Neighbour, letters: Iterator[bytes], to: str, count: int
) -> list[Fact]:
    """Measure the time from the 250 of a delivery to its event.

    Negative if the event came first.
    """
    heard, whole = list[float](), list[float]()
    async with subscribed(target) as ws:
        await settled(target.pid)
        for _ in range(count):
            coming = asyncio.create_task(_event(ws))
            raw, began = next(letters), time.perf_counter()
            reply = await neighbour.deliver(to, raw)
            answered = time.perf_counter()
            if not reply.startswith("250"):
                raise RuntimeError(f"not delivered: {reply}")
            come = await coming
            heard.append((come - answered) * 1e3)
            whole.append((come - began) * 1e3)
            await asyncio.sleep(PAUSE)
    name = "from LMTP 250 to the event"
    return [
        Fact(f"{name}, p50", percentile(heard, 0.5), "ms"),
        Fact(f"{name}, p99", percentile(heard, 0.99), "ms"),
        Fact(f"{name}, worst of {count}", max(heard), "ms"),
        Fact("from MAIL to the event, p50", percentile(whole, 0.5), "ms"),
        Fact("from MAIL to the event, p99", percentile(whole, 0.99), "ms"),
    ]


async def _event(ws: ClientConnection) -> float:
    """Return the time at which the next event arrives. Raises RuntimeError for another event."""
    async with asyncio.timeout(LONGEST):
        message = await ws.recv()
    at = time.perf_counter()
    if "MESSAGE_ADDED" not in str(message):
        raise RuntimeError(f"no event of a message: {message!r}")
    return at


async def crowd(
    target: Target, neighbour: Neighbour, letters: Iterator[bytes], to: str, count: int
) -> list[Fact]:
    """Measure the cost of idle subscribers, and how long one event takes to reach all."""
    await settled(target.pid)
    before, used = memory(target.pid), cpu(target.pid)
    listeners = await listening([target] * count, EVENTS)
    await settled(target.pid)
    opened, now = cpu(target.pid) - used, memory(target.pid)
    facts = [
        Fact("memory idle, PSS", before[0] / 1024, "MiB"),
        Fact("memory idle, RSS", before[1] / 1024, "MiB"),
        Fact(f"memory with {count} subscribers, PSS", now[0] / 1024, "MiB"),
        Fact(f"memory with {count} subscribers, RSS", now[1] / 1024, "MiB"),
        Fact("memory of a subscriber, PSS", (now[0] - before[0]) / count, "KiB"),
        Fact("CPU to connect and subscribe, each", opened / count * 1e3, "ms"),
    ]
    facts += await _told(target, neighbour, letters, to, listeners)
    for listener in listeners:
        listener.transport.abort()
    return facts


async def _told(
    target: Target,
    neighbour: Neighbour,
    letters: Iterator[bytes],
    to: str,
    listeners: list[Listener],
) -> list[Fact]:
    lasts, used = list[float](), cpu(target.pid)
    for _ in range(TOLD):
        for listener in listeners:
            listener.expect()
        began = time.perf_counter()
        await neighbour.deliver(to, next(letters))  # the 250 can come after the event
        async with asyncio.timeout(LONGEST):
            came = await asyncio.gather(*(listener.came for listener in listeners))
        lasts.append((max(came) - began) * 1e3)
        await asyncio.sleep(2 * PAUSE)
    await settled(target.pid)
    took = (cpu(target.pid) - used) / TOLD
    many = len(listeners)
    return [
        Fact(f"one event, from MAIL until all {many} have it, p50", percentile(lasts, 0.5), "ms"),
        Fact(f"one event, until all {many} have it, worst of {TOLD}", max(lasts), "ms"),
        Fact("one event, CPU for each subscriber, the delivery with it", took / many * 1e6, "µs"),
    ]


async def caught_up(target: Target, count: int) -> list[Fact]:
    """Measure how fast a client reads missed changes, page by page."""
    said = await once(target, "/graphql", {"query": "{ viewer { user { cursor } } }"})
    stream = said["data"]["viewer"]["user"]["cursor"].split(".")[1]
    at, read = f"1.{stream}.0", 0
    await settled(target.pid)
    used, began = cpu(target.pid), time.perf_counter()
    while read < count:
        body = {"query": BEHIND, "variables": {"after": at}}
        page = (await once(target, "/graphql", body))["data"]["changes"]
        read += len(page["events"])
        at = page["cursor"] if page["hasMore"] else f"1.{stream}.0"
    took, spent = time.perf_counter() - began, cpu(target.pid) - used
    return [
        Fact(f"{CAUGHT_UP}, in a second of CPU", read / spent, ""),
        Fact(f"{CAUGHT_UP}, in a second", read / took, ""),
    ]


async def slow(
    target: Target, neighbour: Neighbour, letters: Iterator[bytes], to: str, count: int
) -> list[Fact]:
    """Measure the memory of subscribers that read nothing, while another one receives events."""
    await settled(target.pid)
    deaf = await listening([target] * SLOW, LARGE)
    for listener in deaf:
        listener.transport.pause_reading()
    (reader,) = await listening([target], LARGE)
    before, waits = memory(target.pid)[0], list[float]()
    for _ in range(count):
        reader.expect()
        began = time.perf_counter()
        await neighbour.deliver(to, next(letters))
        async with asyncio.timeout(LONGEST):
            waits.append((await reader.came - began) * 1e3)
    await settled(target.pid)
    held = memory(target.pid)[0] - before
    for listener in (*deaf, reader):
        listener.transport.abort()
    return [
        Fact(f"{SLOW} who read nothing, {count} letters: from MAIL to the one who does, p50",
             percentile(waits, 0.5), "ms"),
        Fact("the same, worst", max(waits), "ms"),
        Fact("memory of one who reads nothing", held / SLOW, "KiB"),
    ]  # fmt: skip
