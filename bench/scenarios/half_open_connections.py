"""Measure the effect of connections that send half of a request and stay open."""

import asyncio
import itertools
import statistics
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress

from bench.figures.measurements import Fact
from bench.load.http_client import Target, loaded
from bench.servers.ports import HOST

COUNT = 300
ROUNDS = 5
CONNECTIONS = 16
TOGETHER = 50
PAUSE = 0.5
HEAD = (
    f"POST /graphql HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    "Content-Length: 1000\r\n"
)
UPGRADE = (
    f"GET /graphql HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n"
    "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
HALVES = [
    b"",
    b"POST /gra",
    HEAD.encode(),
    f'{HEAD}\r\n{{"query": "{{ view'.encode(),
    UPGRADE.encode(),
]


@asynccontextmanager
async def half_open(port: int, count: int) -> AsyncGenerator[None]:
    """Keep partial requests open on this many connections; closed ones are replaced."""
    kinds = itertools.cycle(HALVES)
    up = asyncio.Semaphore(TOGETHER)
    ready = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.create_task(_stay(port, sent, up, there))
        for sent, there in zip(kinds, ready, strict=False)
    ]
    try:
        await asyncio.gather(*(there.wait() for there in ready))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stay(port: int, sent: bytes, up: asyncio.Semaphore, there: asyncio.Event) -> None:
    while True:
        async with up:
            reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(sent)
            there.set()
            with suppress(OSError):
                while await reader.read(4096):
                    pass
        finally:
            writer.transport.abort()
        await asyncio.sleep(PAUSE)


async def noticed(target: Target, requests: Iterator[bytes], seconds: float) -> list[Fact]:
    """Return the p99 of a request without and with half-open connections, as medians of rounds."""
    alone, beside = list[float](), list[float]()
    for _ in range(ROUNDS):
        alone.append(await _p99(target, requests, seconds))
        async with half_open(target.port, COUNT):
            beside.append(await _p99(target, requests, seconds))
    before, after = statistics.median(alone), statistics.median(beside)
    return [
        Fact("inbox page, p99 alone", before, "ms"),
        Fact(f"inbox page, p99 beside {COUNT} half-open connections", after, "ms"),
        Fact(f"times the p99, beside {COUNT} half-open connections", after / before, "times"),
    ]


async def _p99(target: Target, requests: Iterator[bytes], seconds: float) -> float:
    return (
        await loaded(target, requests, connections=CONNECTIONS, seconds=seconds, least=CONNECTIONS)
    ).p99
