"""A cheap HTTP/1.1 client: persistent connections, and only as much parsing as needed."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import orjson

from bench.figures.measurements import LoadFigure, figure_from_latencies
from bench.servers.merganser_process import (
    START_STOP_TIMEOUT,
    close_connection,
    cpu_seconds,
    wait_until_idle,
)
from bench.servers.ports import HOST

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
DEADLINE_ERROR = b'"code":"DEADLINE_EXCEEDED"'
MAX_DURATION_FACTOR = (
    8  # slow requests need longer than the given duration to reach the minimum count
)
MIN_DURATION = 1.0  # seconds; a shorter duration counts as this long
WARM_UP_SHARE = 0.15  # of the duration; not measured


@dataclass(frozen=True, slots=True)
class BenchmarkTarget:
    """A server to measure: port, process ID and credential."""

    port: int
    pid: int
    bearer_token: str = ""


def encode_post_request(target: BenchmarkTarget, path: str, body: Mapping[str, Any]) -> bytes:
    """Return a complete HTTP request with a JSON body."""
    data = orjson.dumps(body)
    sign = f"Authorization: Bearer {target.bearer_token}\r\n" if target.bearer_token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{target.port}\r\n{sign}"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@dataclass
class LoadRun:
    """State that the connections of one load run share."""

    requests: Iterator[bytes]
    min_responses: int  # the run takes longer if necessary
    started_at: float = 0.0
    ends_at: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late_count: int = 0  # responses with the server's deadline error
    error_response: bytes = b""

    @property
    def is_over(self) -> bool:
        """True if no more requests are sent."""
        now = time.perf_counter()
        limit = self.started_at + MAX_DURATION_FACTOR * max(
            self.ends_at - self.started_at, MIN_DURATION
        )
        enough = len(self.latencies) + self.late_count >= self.min_responses or now >= limit
        return bool(self.error_response) or (now >= self.ends_at and enough)


class PartialResponse:
    """An HTTP response that arrives in parts."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self._head = 0  # length of the head once it is complete
        self._whole = 0  # length of the response

    def add_data(self, data: bytes) -> bool:
        """Add received data, and return True if the response is complete."""
        self.raw += data
        if not self._head:
            end = self.raw.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._head = end + 4
            match = CONTENT_LENGTH.search(self.raw, 0, self._head)
            self._whole = self._head + int(match[1]) if match else self._head
        return len(self.raw) >= self._whole

    def clear(self) -> None:
        """Prepare for the next response on the connection."""
        self.raw.clear()
        self._head = 0

    @property
    def json_body(self) -> Any:
        """The decoded JSON body."""
        return orjson.loads(self.raw[self._head :])

    @property
    def is_success(self) -> bool:
        """True if the status is 200 and the body contains no errors."""
        return self.raw.startswith(b"HTTP/1.1 200") and b'"errors":[{' not in self.raw


class LoadConnection(asyncio.Protocol):
    """A connection that sends the next request when a response is complete."""

    def __init__(self, run: LoadRun) -> None:
        self.load_run = run
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = PartialResponse()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)  # of a TCP socket
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self.load_run.requests))

    def data_received(self, data: bytes) -> None:
        """Add a part of the response."""
        if self._answer.add_data(data):
            self._record_response()

    def _record_response(self) -> None:
        run, answer = self.load_run, self._answer
        if DEADLINE_ERROR in answer.raw:
            run.late_count += 1
        elif not answer.is_success:
            run.error_response = bytes(answer.raw[:2000])
        else:
            run.latencies.append(time.perf_counter() - self._sent)
        answer.clear()
        if not run.is_over:
            self._send()
            return
        self._transport.close()

    def connection_lost(self, _problem: Exception | None) -> None:
        """Mark this connection as closed."""
        if not self.load_run.is_over:
            self.load_run.error_response = b"the server closed a connection"
        if not self.done.done():
            self.done.set_result(None)


async def measure_load(
    target: BenchmarkTarget,
    requests: Iterator[bytes],
    *,
    connection_count: int,
    seconds: float,
    min_responses: int = 0,
) -> LoadFigure:
    """Keep connections busy for a time, and return the figure. Raises RuntimeError on an error."""
    warm = LoadRun(requests, min_responses=connection_count)
    await _run_connections(target.port, warm, connection_count, seconds * WARM_UP_SHARE)
    run = LoadRun(requests, min_responses)
    before = cpu_seconds(target.pid)
    took = await _run_connections(target.port, run, connection_count, seconds)
    figure = figure_from_latencies(
        connection_count, run.latencies, took, cpu_seconds(target.pid) - before
    )
    return replace(figure, late=run.late_count)


async def measure_documents(
    target: BenchmarkTarget,
    bodies: Mapping[str, Mapping[str, Any]],
    *,
    connection_count: int,
    seconds: float,
) -> dict[str, LoadFigure]:
    """Measure each GraphQL request for a time. Raises RuntimeError if one returns errors."""
    figures = {}
    for name, body in bodies.items():
        answer = await request_json(target, "/graphql", body)
        if "errors" in answer:
            raise RuntimeError(f"{name}: {answer['errors']}")
        requests = itertools.repeat(encode_post_request(target, "/graphql", body))
        figures[name] = await measure_load(
            target, requests, connection_count=connection_count, seconds=seconds, min_responses=5
        )
        await wait_until_idle(target.pid)
    return figures


async def send_all(
    target: BenchmarkTarget, requests: Iterator[bytes], *, connection_count: int, min_responses: int
) -> int:
    """Send requests until this many are answered, and return how many were.

    Raises RuntimeError on an error.
    """
    run = LoadRun(requests, min_responses)
    await _run_connections(target.port, run, connection_count, 0.0)
    return len(run.latencies)


async def _run_connections(
    port: int, load_run: LoadRun, connection_count: int, seconds: float
) -> float:
    """Run connections until the load run is over, and return the seconds it took.

    Raises RuntimeError on an error.
    """
    loop = asyncio.get_running_loop()
    load_run.started_at = time.perf_counter()
    load_run.ends_at = load_run.started_at + seconds
    connections = [
        await loop.create_connection(lambda: LoadConnection(load_run), HOST, port)
        for _ in range(connection_count)
    ]
    async with asyncio.timeout(MAX_DURATION_FACTOR * seconds + START_STOP_TIMEOUT):
        await asyncio.gather(*(protocol.done for _, protocol in connections))
    if load_run.error_response:
        raise RuntimeError(
            f"unexpected response: {load_run.error_response.decode(errors='replace')}"
        )
    return time.perf_counter() - load_run.started_at


class SequentialConnection(asyncio.Protocol):
    """A persistent connection that sends one request after the other and times the responses."""

    def __init__(self) -> None:
        self._came: asyncio.Future[float] | None = None
        self._answer = PartialResponse()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport of the new connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Add a part of the response."""
        if self._answer.add_data(data) and self._came and not self._came.done():
            self._came.set_result(time.perf_counter())

    def connection_lost(self, _problem: Exception | None) -> None:
        """Fail the request that waits for a response."""
        if self._came and not self._came.done():
            self._came.set_exception(ConnectionError("the server closed a connection"))

    async def request_data(self, request: bytes) -> tuple[Any, float]:
        """Return the data of a response and the time it was complete.

        Raises RuntimeError on an error response.
        """
        self._came = asyncio.get_running_loop().create_future()
        self._answer.clear()
        self._transport.write(request)
        async with asyncio.timeout(START_STOP_TIMEOUT):
            at = await self._came
        if not self._answer.is_success:
            response_text = bytes(self._answer.raw[:2000]).decode(errors="replace")
            raise RuntimeError(f"unexpected response: {response_text}")
        return self._answer.json_body["data"], at

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def open_connections(target: BenchmarkTarget, count: int) -> list[SequentialConnection]:
    """Open this many persistent connections."""
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(SequentialConnection, HOST, target.port))[1]
        for _ in range(count)
    ]


async def request_json(target: BenchmarkTarget, path: str, body: Mapping[str, Any]) -> Any:
    """Send one request, and return the JSON of its response. Raises RuntimeError on an error."""
    reader, writer = await asyncio.open_connection(HOST, target.port)
    try:
        writer.write(encode_post_request(target, path, body))
        head = await reader.readuntil(b"\r\n\r\n")
        match = CONTENT_LENGTH.search(head)
        answer = orjson.loads(await reader.readexactly(int(match[1]) if match else 0))
    finally:
        await close_connection(writer)
    if b" 200 " not in head[:16] or (isinstance(answer, dict) and "errors" in answer):
        raise RuntimeError(f"unexpected response: {answer}")
    return answer
