"""A cheap HTTP/1.1 client: persistent connections, and only as much parsing as needed."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson

from bench.figures.measurements import Figure, figure
from bench.servers.merganser_process import PATIENCE, cpu, hang_up, settled
from bench.servers.ports import HOST

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LATE = b'"code":"DEADLINE_EXCEEDED"'
LONGEST = 8  # slow requests need longer than the given duration to reach the minimum count
LEAST = 1.0  # seconds; a shorter duration counts as this long
WARM = 0.15  # of the duration; not measured


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure: port, process ID and credential."""

    port: int
    pid: int
    secret: str = ""


def post(target: Target, path: str, body: Mapping[str, Any]) -> bytes:
    """Return a complete HTTP request with a JSON body."""
    data = orjson.dumps(body)
    sign = f"Authorization: Bearer {target.secret}\r\n" if target.secret else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{target.port}\r\n{sign}"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@dataclass
class Run:
    """State that the connections of one load run share."""

    requests: Iterator[bytes]
    least: int  # the run takes longer if necessary
    begin: float = 0.0
    end: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: int = 0  # responses with the server's deadline error
    wrong: bytes = b""

    @property
    def over(self) -> bool:
        """True if no more requests are sent."""
        now = time.perf_counter()
        limit = self.begin + LONGEST * max(self.end - self.begin, LEAST)
        enough = len(self.latencies) + self.late >= self.least or now >= limit
        return bool(self.wrong) or (now >= self.end and enough)


class Answer:
    """An HTTP response that arrives in parts."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self._head = 0  # length of the head once it is complete
        self._whole = 0  # length of the response

    def take(self, data: bytes) -> bool:
        """Add received data, and return True if the response is complete."""
        self.raw += data
        if not self._head:
            end = self.raw.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._head = end + 4
            found = LENGTH.search(self.raw, 0, self._head)
            self._whole = self._head + int(found[1]) if found else self._head
        return len(self.raw) >= self._whole

    def clear(self) -> None:
        """Prepare for the next response on the connection."""
        self.raw.clear()
        self._head = 0

    @property
    def body(self) -> Any:
        """The decoded JSON body."""
        return orjson.loads(self.raw[self._head :])

    @property
    def good(self) -> bool:
        """True if the status is 200 and the body contains no errors."""
        return self.raw.startswith(b"HTTP/1.1 200") and b'"errors":[{' not in self.raw


class Connection(asyncio.Protocol):
    """A connection that sends the next request when a response is complete."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = Answer()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)  # of a TCP socket
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self.run.requests))

    def data_received(self, data: bytes) -> None:
        """Add a part of the response."""
        if self._answer.take(data):
            self._answered()

    def _answered(self) -> None:
        run, answer = self.run, self._answer
        if LATE in answer.raw:
            run.late += 1
        elif not answer.good:
            run.wrong = bytes(answer.raw[:2000])
        else:
            run.latencies.append(time.perf_counter() - self._sent)
        answer.clear()
        if not run.over:
            self._send()
            return
        self._transport.close()

    def connection_lost(self, _problem: Exception | None) -> None:
        """Mark this connection as closed."""
        if not self.run.over:
            self.run.wrong = b"a connection was closed under us"
        if not self.done.done():
            self.done.set_result(None)


async def loaded(
    target: Target, requests: Iterator[bytes], *, connections: int, seconds: float, least: int = 0
) -> Figure:
    """Keep connections busy for a time, and return the figure. Raises RuntimeError on an error."""
    warm = Run(requests, least=connections)
    await _filled(target.port, warm, connections, seconds * WARM)
    run = Run(requests, least)
    before = cpu(target.pid)
    took = await _filled(target.port, run, connections, seconds)
    made = figure(connections, run.latencies, took, cpu(target.pid) - before)
    return replace(made, late=run.late)


async def measure_documents(
    target: Target, bodies: Mapping[str, Mapping[str, Any]], *, connections: int, seconds: float
) -> dict[str, Figure]:
    """Measure each GraphQL request for a time. Raises RuntimeError if one returns errors."""
    figures = {}
    for name, body in bodies.items():
        answer = await once(target, "/graphql", body)
        if "errors" in answer:
            raise RuntimeError(f"{name}: {answer['errors']}")
        requests = itertools.repeat(post(target, "/graphql", body))
        figures[name] = await loaded(
            target, requests, connections=connections, seconds=seconds, least=5
        )
        await settled(target.pid)
    return figures


async def filled(target: Target, requests: Iterator[bytes], *, connections: int, least: int) -> int:
    """Send requests until this many are answered, and return how many were.

    Raises RuntimeError on an error.
    """
    run = Run(requests, least)
    await _filled(target.port, run, connections, 0.0)
    return len(run.latencies)


async def _filled(port: int, run: Run, connections: int, seconds: float) -> float:
    """Run connections until the load run is over, and return the seconds it took.

    Raises RuntimeError on an error.
    """
    loop = asyncio.get_running_loop()
    run.begin = time.perf_counter()
    run.end = run.begin + seconds
    made = [
        await loop.create_connection(lambda: Connection(run), HOST, port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(LONGEST * seconds + PATIENCE):
        await asyncio.gather(*(protocol.done for _, protocol in made))
    if run.wrong:
        raise RuntimeError(f"not a good answer: {run.wrong.decode(errors='replace')}")
    return time.perf_counter() - run.begin


class Asker(asyncio.Protocol):
    """A persistent connection that sends one request after the other and times the responses."""

    def __init__(self) -> None:
        self._came: asyncio.Future[float] | None = None
        self._answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Add a part of the response."""
        if self._answer.take(data) and self._came and not self._came.done():
            self._came.set_result(time.perf_counter())

    def connection_lost(self, _problem: Exception | None) -> None:
        """Fail the request that waits for a response."""
        if self._came and not self._came.done():
            self._came.set_exception(ConnectionError("a connection was closed under us"))

    async def ask(self, request: bytes) -> tuple[Any, float]:
        """Return the data of a response and the time it was complete.

        Raises RuntimeError on an error response.
        """
        self._came = asyncio.get_running_loop().create_future()
        self._answer.clear()
        self._transport.write(request)
        async with asyncio.timeout(PATIENCE):
            at = await self._came
        if not self._answer.good:
            said = bytes(self._answer.raw[:2000]).decode(errors="replace")
            raise RuntimeError(f"not a good answer: {said}")
        return self._answer.body["data"], at

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def asking(target: Target, count: int) -> list[Asker]:
    """Open this many persistent connections."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Asker, HOST, target.port))[1] for _ in range(count)]


async def once(target: Target, path: str, body: Mapping[str, Any]) -> Any:
    """Send one request, and return the JSON of its response. Raises RuntimeError on an error."""
    reader, writer = await asyncio.open_connection(HOST, target.port)
    try:
        writer.write(post(target, path, body))
        head = await reader.readuntil(b"\r\n\r\n")
        found = LENGTH.search(head)
        answer = orjson.loads(await reader.readexactly(int(found[1]) if found else 0))
    finally:
        await hang_up(writer)
    if b" 200 " not in head[:16] or (isinstance(answer, dict) and "errors" in answer):
        raise RuntimeError(f"not a good answer: {answer}")
    return answer
