"""An LMTP client that delivers messages, with pipelining."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures.measurements import Figure, figure
from bench.load.http_client import WARM, Target
from bench.servers.merganser_process import PATIENCE, cpu, hang_up
from bench.servers.ports import HOST

SENDER = "bob@example.com"


@dataclass
class Neighbour:
    """An open LMTP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def reply(self) -> str:
        """Return the last line of the next reply.

        Raises ConnectionError if the server has closed the connection.
        """
        while True:
            line = await self.reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("hung up on")
            if line[3:4] != b"-":
                return line.decode().rstrip()

    async def deliver(self, to: str, raw: bytes, sender: str = SENDER) -> str:
        """Deliver a message to one recipient. Returns the final reply, or the first refusal."""
        command = f"MAIL FROM:<{sender}> SIZE={len(raw)}\r\nRCPT TO:<{to}>\r\nDATA\r\n"
        self.writer.write(command.encode())
        replies = [await self.reply() for _ in range(3)]
        if not replies[-1].startswith("354"):
            self.writer.write(b"RSET\r\n")
            await self.reply()
            return next(reply for reply in replies if not reply.startswith("250"))
        self.writer.write(stuffed(raw))
        await self.writer.drain()
        return await self.reply()

    async def close(self) -> None:
        """Close the connection."""
        await hang_up(self.writer)


def stuffed(raw: bytes) -> bytes:
    """Return a message that ends with CRLF as DATA sends it (RFC 5321, section 4.5.2)."""
    dotted = raw.replace(b"\r\n.", b"\r\n..")
    return (b"." if raw.startswith(b".") else b"") + dotted + b".\r\n"


async def connected(port: int) -> Neighbour:
    """Open a connection and send LHLO."""
    neighbour = Neighbour(*await asyncio.open_connection(HOST, port))
    try:
        await neighbour.reply()
        neighbour.writer.write(b"LHLO bench.example.com\r\n")
        await neighbour.reply()
    except (OSError, asyncio.CancelledError):
        await neighbour.close()
        raise
    return neighbour


async def delivered(
    target: Target, letters: Iterator[bytes], to: str, *, connections: int, seconds: float
) -> Figure:
    """Measure deliveries over several connections. Raises RuntimeError on any reply but 250."""
    neighbours = [await connected(target.port) for _ in range(connections)]
    await _busy(neighbours, letters, to, seconds * WARM)
    before, began = cpu(target.pid), time.perf_counter()
    latencies = await _busy(neighbours, letters, to, seconds)
    took, used = time.perf_counter() - began, cpu(target.pid) - before
    for neighbour in neighbours:
        await neighbour.close()
    return figure(connections, latencies, took, used)


async def _busy(
    neighbours: list[Neighbour], letters: Iterator[bytes], to: str, seconds: float
) -> list[float]:
    """Deliver over these connections for some seconds, and return the latencies."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def work(neighbour: Neighbour) -> None:
        while time.perf_counter() < end:
            raw = next(letters)
            began = time.perf_counter()
            reply = await neighbour.deliver(to, raw)
            if not reply.startswith("250"):
                raise RuntimeError(f"not delivered: {reply}")
            latencies.append(time.perf_counter() - began)

    async with asyncio.timeout(seconds + PATIENCE):
        await asyncio.gather(*map(work, neighbours))
    return latencies
