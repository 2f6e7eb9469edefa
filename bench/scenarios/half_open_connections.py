"""Measure the effect of connections that send half of a request and stay open."""

import asyncio
import itertools
import statistics
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress

from bench.figures.goals import P99_DURING_HALF_OPEN
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget, measure_load
from bench.servers.ports import HOST

HALF_OPEN_COUNT = 300
ROUNDS = 5
CONNECTION_COUNT = 16
CONCURRENT_CONNECTS = 50
RECONNECT_SECONDS = 0.5
REQUEST_HEAD = (
    f"POST /graphql HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    "Content-Length: 1000\r\n"
)
UPGRADE_REQUEST = (
    f"GET /graphql HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
    "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
PARTIAL_REQUESTS = [
    b"",
    b"POST /gra",
    REQUEST_HEAD.encode(),
    f'{REQUEST_HEAD}\r\n{{"query": "{{ view'.encode(),
    UPGRADE_REQUEST.encode(),
]


@asynccontextmanager
async def open_half_connections(port: int, count: int) -> AsyncGenerator[None]:
    """Keep partial requests open on this many connections; closed ones are replaced."""
    kinds = itertools.cycle(PARTIAL_REQUESTS)
    up = asyncio.Semaphore(CONCURRENT_CONNECTS)
    connected_events = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.create_task(_keep_half_open(port, kind, up, connected))
        for kind, connected in zip(kinds, connected_events, strict=False)
    ]
    try:
        await asyncio.gather(*(connected.wait() for connected in connected_events))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_half_open(
    port: int, partial_request: bytes, connect_limit: asyncio.Semaphore, is_connected: asyncio.Event
) -> None:
    while True:
        async with connect_limit:
            reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(partial_request)
            is_connected.set()
            with suppress(OSError):
                while await reader.read(4096):
                    pass
        finally:
            writer.transport.abort()
        await asyncio.sleep(RECONNECT_SECONDS)


async def measure_half_open_effect(
    target: BenchmarkTarget, requests: Iterator[bytes], seconds: float
) -> list[MeasuredValue]:
    """Return the p99 of a request without and with half-open connections, as medians of rounds."""
    unloaded, loaded = list[float](), list[float]()
    for _ in range(ROUNDS):
        unloaded.append(await _measure_p99(target, requests, seconds))
        async with open_half_connections(target.port, HALF_OPEN_COUNT):
            loaded.append(await _measure_p99(target, requests, seconds))
    before, after = statistics.median(unloaded), statistics.median(loaded)
    return [
        MeasuredValue("inbox page, p99 without half-open connections", before, "ms"),
        MeasuredValue(
            f"inbox page, p99 during {HALF_OPEN_COUNT} half-open connections", after, "ms"
        ),
        MeasuredValue(
            f"{P99_DURING_HALF_OPEN}, {HALF_OPEN_COUNT} connections",
            after / before,
            "times",
        ),
    ]


async def _measure_p99(target: BenchmarkTarget, requests: Iterator[bytes], seconds: float) -> float:
    return (
        await measure_load(
            target,
            requests,
            connection_count=CONNECTION_COUNT,
            seconds=seconds,
            min_responses=CONNECTION_COUNT,
        )
    ).p99
