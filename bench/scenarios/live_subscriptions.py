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

from bench.figures.goals import (
    CATCH_UP_RATE,
    EVENT_TO_LAST_SUBSCRIBER,
    IDLE_MEMORY,
    SUBSCRIBER_MEMORY,
)
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.http_client import BenchmarkTarget, request_json
from bench.load.lmtp_client import LmtpConnection
from bench.servers.merganser_process import cpu_seconds, memory_of_process, wait_until_idle
from bench.servers.ports import HOST

CHANGES_SUBSCRIPTION = (
    "subscription { changes { cursor events { type ... on MessageChange { messageId } } } }"
)
PAUSE_BETWEEN_MESSAGES = 0.08  # seconds, longer than the window of an event batch
EVENT_COUNT = 10
EVENT_TIMEOUT = 30.0  # seconds
CONCURRENT_CONNECTS = 20
SLOW_COUNT = 10  # subscribers that read nothing
TEXT_SUBSCRIPTION = (
    "subscription { changes { cursor events { type ... on MessageChange { message { text } } } } }"
)
CHANGES_QUERY = """query ($after: Cursor!) { changes(after: $after, first: 1000) { cursor hasMore
  events { type cursor ... on MessageChange { messageId mailboxId uid flags modseq } } } }"""
NEXT_MARKER = b'"type":"next"'
UPGRADE_REQUEST = (
    b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)


class LightSubscriber(asyncio.Protocol):
    """A cheap WebSocket subscriber that only records when an event arrives."""

    transport: asyncio.Transport

    def __init__(self, target: BenchmarkTarget, document: str = CHANGES_SUBSCRIPTION) -> None:
        self.target = target
        self.document = document
        self.received_count = 0
        self.subscribed = asyncio.get_running_loop().create_future()
        self.event_data = b""
        self.event_time = self.expect_event()

    def expect_event(self) -> asyncio.Future[float]:
        """Return a future for the time at which the next event arrives."""
        self.event_time = asyncio.get_running_loop().create_future()
        return self.event_time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the WebSocket upgrade request."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(UPGRADE_REQUEST % self.target.port)

    def data_received(self, data: bytes) -> None:
        """Authenticate, then subscribe, then record the time of events."""
        self.received_count += 1
        if self.received_count == 1:
            token = {"Authorization": f"Bearer {self.target.bearer_token}"}
            self._send_frame("connection_init", payload=token)
        elif self.received_count == 2:  # noqa: PLR2004 - connection_ack
            self._send_frame("subscribe", id="1", payload={"query": self.document})
            self.subscribed.set_result(None)
        elif NEXT_MARKER in data and not self.event_time.done():
            self.event_data = data
            self.event_time.set_result(time.perf_counter())

    def _send_frame(self, frame_type: str, **fields: object) -> None:
        frame = orjson.dumps({"type": frame_type, **fields})
        size = len(frame)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)  # noqa: PLR2004
        self.transport.write(b"\x81" + head + bytes(4) + frame)


async def open_subscribers(
    targets: Sequence[BenchmarkTarget], document: str
) -> list[LightSubscriber]:
    """Open a subscriber with its own WebSocket for each target."""
    loop, subscribers = asyncio.get_running_loop(), list[LightSubscriber]()
    for first in range(0, len(targets), CONCURRENT_CONNECTS):
        some = [
            loop.create_connection(partial(LightSubscriber, target, document), HOST, target.port)
            for target in targets[first : first + CONCURRENT_CONNECTS]
        ]
        new = [listener for _, listener in await asyncio.gather(*some)]
        await asyncio.gather(*(listener.subscribed for listener in new))
        subscribers += new
    return subscribers


@asynccontextmanager
async def subscribe_to_changes(target: BenchmarkTarget) -> AsyncGenerator[ClientConnection]:
    """Open a WebSocket that is subscribed to the account's changes.

    Raises RuntimeError if authentication fails.
    """
    url = f"ws://{HOST}:{target.port}/graphql"
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(url, subprotocols=protocols, compression=None, ping_interval=None) as ws:
        sign = {"Authorization": f"Bearer {target.bearer_token}"}
        await ws.send(orjson.dumps({"type": "connection_init", "payload": sign}).decode())
        if orjson.loads(await ws.recv())["type"] != "connection_ack":
            raise RuntimeError("the server refused the credential")
        ask = {"id": "1", "type": "subscribe", "payload": {"query": CHANGES_SUBSCRIPTION}}
        await ws.send(orjson.dumps(ask).decode())
        yield ws


async def measure_latency(
    target: BenchmarkTarget,
    connection: LmtpConnection,
    messages: Iterator[bytes],
    recipient: str,
    message_count: int,
) -> list[MeasuredValue]:
    """Measure the time from the 250 of a delivery to its event.

    Negative if the event came first.
    """
    latencies, total_times = list[float](), list[float]()
    async with subscribe_to_changes(target) as ws:
        await wait_until_idle(target.pid)
        for _ in range(message_count):
            coming = asyncio.create_task(_receive_event(ws))
            raw, started_at = next(messages), time.perf_counter()
            reply = await connection.deliver(recipient, raw)
            answered = time.perf_counter()
            if not reply.startswith("250"):
                raise RuntimeError(f"not delivered: {reply}")
            come = await coming
            latencies.append((come - answered) * 1e3)
            total_times.append((come - started_at) * 1e3)
            await asyncio.sleep(PAUSE_BETWEEN_MESSAGES)
    name = "from the 250 reply of LMTP to the event, one subscriber"
    return [
        MeasuredValue(f"{name}, p50", percentile(latencies, 0.5), "ms"),
        MeasuredValue(f"{name}, p99", percentile(latencies, 0.99), "ms"),
        MeasuredValue(f"{name}, maximum of {message_count}", max(latencies), "ms"),
        MeasuredValue(
            "from the start of a delivery to the event, p50", percentile(total_times, 0.5), "ms"
        ),
        MeasuredValue(
            "from the start of a delivery to the event, p99", percentile(total_times, 0.99), "ms"
        ),
    ]


async def _receive_event(websocket: ClientConnection) -> float:
    """Return the time at which the next event arrives. Raises RuntimeError for another event."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        message = await websocket.recv()
    at = time.perf_counter()
    if "MESSAGE_ADDED" not in str(message) and "MESSAGE_RECEIVED" not in str(message):
        raise RuntimeError(f"not the event of a message: {message!r}")
    return at


async def measure_subscribers(
    target: BenchmarkTarget,
    connection: LmtpConnection,
    messages: Iterator[bytes],
    recipient: str,
    subscriber_count: int,
) -> list[MeasuredValue]:
    """Measure the cost of idle subscribers, and how long one event takes to reach all."""
    await wait_until_idle(target.pid)
    before, used = memory_of_process(target.pid), cpu_seconds(target.pid)
    listeners = await open_subscribers([target] * subscriber_count, CHANGES_SUBSCRIPTION)
    await wait_until_idle(target.pid)
    opened, now = cpu_seconds(target.pid) - used, memory_of_process(target.pid)
    facts = [
        MeasuredValue(IDLE_MEMORY, before[0] / 1024, "MiB"),
        MeasuredValue("memory without subscribers, RSS", before[1] / 1024, "MiB"),
        MeasuredValue(f"memory with {subscriber_count} {SUBSCRIBER_MEMORY}", now[0] / 1024, "MiB"),
        MeasuredValue(
            f"memory with {subscriber_count} WebSocket subscribers, RSS", now[1] / 1024, "MiB"
        ),
        MeasuredValue(
            "memory of one WebSocket subscriber, PSS",
            (now[0] - before[0]) / subscriber_count,
            "KiB",
        ),
        MeasuredValue(
            "CPU to connect and subscribe one WebSocket", opened / subscriber_count * 1e3, "ms"
        ),
    ]
    facts += await _measure_fan_out(target, connection, messages, recipient, listeners)
    for listener in listeners:
        listener.transport.abort()
    return facts


async def _measure_fan_out(
    target: BenchmarkTarget,
    connection: LmtpConnection,
    messages: Iterator[bytes],
    recipient: str,
    subscribers: list[LightSubscriber],
) -> list[MeasuredValue]:
    lasts, used = list[float](), cpu_seconds(target.pid)
    for _ in range(EVENT_COUNT):
        for listener in subscribers:
            listener.expect_event()
        started_at = time.perf_counter()
        await connection.deliver(recipient, next(messages))  # the 250 can come after the event
        async with asyncio.timeout(EVENT_TIMEOUT):
            event_times = await asyncio.gather(*(listener.event_time for listener in subscribers))
        lasts.append((max(event_times) - started_at) * 1e3)
        await asyncio.sleep(2 * PAUSE_BETWEEN_MESSAGES)
    await wait_until_idle(target.pid)
    took = (cpu_seconds(target.pid) - used) / EVENT_COUNT
    many = len(subscribers)
    return [
        MeasuredValue(
            f"{EVENT_TO_LAST_SUBSCRIBER} {many} WebSocket subscribers, p50",
            percentile(lasts, 0.5),
            "ms",
        ),
        MeasuredValue(f"the same, maximum of {EVENT_COUNT}", max(lasts), "ms"),
        MeasuredValue(
            "CPU of a delivery and its event, per WebSocket subscriber", took / many * 1e6, "µs"
        ),
    ]


async def measure_catch_up(target: BenchmarkTarget, change_count: int) -> list[MeasuredValue]:
    """Measure how fast a client reads missed changes, page by page."""
    response = await request_json(target, "/graphql", {"query": "{ viewer { user { cursor } } }"})
    stream = response["data"]["viewer"]["user"]["cursor"].split(".")[1]
    at, read = f"1.{stream}.0", 0
    await wait_until_idle(target.pid)
    used, started_at = cpu_seconds(target.pid), time.perf_counter()
    while read < change_count:
        body = {"query": CHANGES_QUERY, "variables": {"after": at}}
        page = (await request_json(target, "/graphql", body))["data"]["changes"]
        read += len(page["events"])
        at = page["cursor"] if page["hasMore"] else f"1.{stream}.0"
    took, spent = time.perf_counter() - started_at, cpu_seconds(target.pid) - used
    return [
        MeasuredValue(CATCH_UP_RATE, read / spent, ""),
        MeasuredValue("the same, per second", read / took, ""),
    ]


async def measure_slow_subscribers(
    target: BenchmarkTarget,
    connection: LmtpConnection,
    messages: Iterator[bytes],
    recipient: str,
    message_count: int,
) -> list[MeasuredValue]:
    """Measure the memory of subscribers that read nothing, while another one receives events."""
    await wait_until_idle(target.pid)
    stalled = await open_subscribers([target] * SLOW_COUNT, TEXT_SUBSCRIPTION)
    for listener in stalled:
        listener.transport.pause_reading()
    (reader,) = await open_subscribers([target], TEXT_SUBSCRIPTION)
    before, waits = memory_of_process(target.pid)[0], list[float]()
    for _ in range(message_count):
        reader.expect_event()
        started_at = time.perf_counter()
        await connection.deliver(recipient, next(messages))
        async with asyncio.timeout(EVENT_TIMEOUT):
            waits.append((await reader.event_time - started_at) * 1e3)
    await wait_until_idle(target.pid)
    held_bytes = memory_of_process(target.pid)[0] - before
    for listener in (*stalled, reader):
        listener.transport.abort()
    return [
        MeasuredValue(
            f"{message_count} messages while {SLOW_COUNT} subscribers don't read: from the start "
            "of a delivery to the event at another subscriber, p50",
            percentile(waits, 0.5),
            "ms",
        ),
        MeasuredValue("the same, maximum", max(waits), "ms"),
        MeasuredValue("memory of a subscriber that doesn't read", held_bytes / SLOW_COUNT, "KiB"),
    ]
