"""Those who stay connected: how soon they hear of a change, and what each of them costs."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.lmtp import Neighbour
from bench.load import Target
from bench.measure import Fact, percentile
from bench.server import HOST, cpu, memory, settled

EVENTS = "subscription { changes { cursor events { kind ... on MessageChange { messageId } } } }"
PAUSE = 0.08  # seconds between two letters: longer than the window in which events are gathered
LONGEST = 30.0  # seconds until an event must have come
OPENING = 20  # connections that are opened at once


@asynccontextmanager
async def subscribed(target: Target) -> AsyncGenerator[ClientConnection]:
    """A socket that hears of all changes of the account, from its first event on."""
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
    """From the 250 of a delivery to its event; below 0 where the event was first."""
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
    """The moment at which the next event has come."""
    async with asyncio.timeout(LONGEST):
        message = await ws.recv()
    at = time.perf_counter()
    if "MESSAGE_ADDED" not in str(message):
        raise RuntimeError(f"no event of a message: {message!r}")
    return at


async def crowd(
    target: Target, neighbour: Neighbour, letters: Iterator[bytes], to: str, count: int
) -> list[Fact]:
    """What so many idle subscribers take, and how long one event takes to reach them all."""
    await settled(target.pid)
    before, used = memory(target.pid), cpu(target.pid)
    async with AsyncExitStack() as stack:
        sockets = list[ClientConnection]()
        for first in range(0, count, OPENING):
            some = range(first, min(first + OPENING, count))
            made = [stack.enter_async_context(subscribed(target)) for _ in some]
            sockets += await asyncio.gather(*made)
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
        return facts + await _told(target, neighbour, next(letters), to, sockets)


async def _told(
    target: Target, neighbour: Neighbour, raw: bytes, to: str, sockets: list[ClientConnection]
) -> list[Fact]:
    coming = [asyncio.create_task(_event(ws)) for ws in sockets]
    await asyncio.sleep(0)
    used, began = cpu(target.pid), time.perf_counter()
    await neighbour.deliver(to, raw)  # the 250 may come late: the server is telling the others
    last = max(await asyncio.gather(*coming)) - began
    took = cpu(target.pid) - used
    return [
        Fact(f"one event, from MAIL until all {len(sockets)} have it", last * 1e3, "ms"),
        Fact("one event, CPU for each subscriber", took / len(sockets) * 1e6, "µs"),
    ]
