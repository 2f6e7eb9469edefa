"""An LMTP client that delivers messages, with pipelining."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures.measurements import LoadFigure, figure_from_latencies
from bench.load.http_client import WARM_UP_SHARE, BenchmarkTarget
from bench.servers.merganser_process import START_STOP_TIMEOUT, close_connection, cpu_seconds
from bench.servers.ports import HOST

ENVELOPE_SENDER = "bob@example.com"


@dataclass
class LmtpConnection:
    """An open LMTP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_reply(self) -> str:
        """Return the last line of the next reply.

        Raises ConnectionError if the server has closed the connection.
        """
        while True:
            line = await self.reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("hung up on")
            if line[3:4] != b"-":
                return line.decode().rstrip()

    async def deliver(
        self, recipient: str, raw_message: bytes, sender: str = ENVELOPE_SENDER
    ) -> str:
        """Deliver a message to one recipient. Returns the final reply, or the first refusal."""
        command = (
            f"MAIL FROM:<{sender}> SIZE={len(raw_message)}\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
        )
        self.writer.write(command.encode())
        replies = [await self.read_reply() for _ in range(3)]
        if not replies[-1].startswith("354"):
            self.writer.write(b"RSET\r\n")
            await self.read_reply()
            return next(reply for reply in replies if not reply.startswith("250"))
        self.writer.write(dot_stuff(raw_message))
        await self.writer.drain()
        return await self.read_reply()

    async def close(self) -> None:
        """Close the connection."""
        await close_connection(self.writer)


def dot_stuff(raw_message: bytes) -> bytes:
    """Return a message that ends with CRLF as DATA sends it (RFC 5321, section 4.5.2)."""
    dotted = raw_message.replace(b"\r\n.", b"\r\n..")
    return (b"." if raw_message.startswith(b".") else b"") + dotted + b".\r\n"


async def connect(port: int) -> LmtpConnection:
    """Open a connection and send LHLO."""
    connection = LmtpConnection(*await asyncio.open_connection(HOST, port))
    try:
        await connection.read_reply()
        connection.writer.write(b"LHLO bench.example.com\r\n")
        await connection.read_reply()
    except (OSError, asyncio.CancelledError):
        await connection.close()
        raise
    return connection


async def measure_deliveries(
    target: BenchmarkTarget,
    messages: Iterator[bytes],
    recipient: str,
    *,
    connection_count: int,
    seconds: float,
) -> LoadFigure:
    """Measure deliveries over several connections. Raises RuntimeError on any reply but 250."""
    connections = [await connect(target.port) for _ in range(connection_count)]
    await _deliver_for(connections, messages, recipient, seconds * WARM_UP_SHARE)
    before, started_at = cpu_seconds(target.pid), time.perf_counter()
    latencies = await _deliver_for(connections, messages, recipient, seconds)
    took, used = time.perf_counter() - started_at, cpu_seconds(target.pid) - before
    for connection in connections:
        await connection.close()
    return figure_from_latencies(connection_count, latencies, took, used)


async def _deliver_for(
    connections: list[LmtpConnection], messages: Iterator[bytes], recipient: str, seconds: float
) -> list[float]:
    """Deliver over these connections for some seconds, and return the latencies."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def deliver_in_turn(connection: LmtpConnection) -> None:
        while time.perf_counter() < end:
            raw = next(messages)
            started_at = time.perf_counter()
            reply = await connection.deliver(recipient, raw)
            if not reply.startswith("250"):
                raise RuntimeError(f"not delivered: {reply}")
            latencies.append(time.perf_counter() - started_at)

    async with asyncio.timeout(seconds + START_STOP_TIMEOUT):
        await asyncio.gather(*map(deliver_in_turn, connections))
    return latencies
