"""Measure the cost of a 50 MiB message that arrives by SMTP and is redirected.

It is scanned, stored, sealed and sent. `python -m bench.scenarios.large_message COUNT SMTP NEXT
DNS` sends such messages one after the other, in a process of its own, so that the measuring
process does not wait for it. The process is also the DNS server, which knows no name, and the
next hop.
"""

import asyncio
import sys
from asyncio import DatagramProtocol, DatagramTransport, StreamReader, StreamWriter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from rich.progress import Progress

from bench.figures.goals import ABOVE, BESIDE, SENT_ON
from bench.figures.measurements import Fact, Figure
from bench.load.http_client import Target
from bench.load.lmtp_client import Neighbour, delivered
from bench.load.message_generator import Writer
from bench.load.sample_account import make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import (
    PATIENCE,
    ROOT,
    Server,
    broken,
    hang_up,
    running,
    settled,
    whole_memory,
)
from bench.servers.ports import HOST, free_port
from merganser.server import arc_keys
from merganser.server.environment_factory import opened
from merganser.settings.settings import Settings

NAME = "deliveries beside a large one by SMTP that is sent on"
PLAIN, FORWARDS, FAR = "plain@bench.example", "onward@bench.example", "far@elsewhere.example"
SMALL, LARGE = 2_000, 50 * 1024 * 1024  # bytes
STEP = 1 << 20  # bytes
LOOK = 0.02
UNKNOWN = b"\x81\x83"
SIGNED = (  # makes the server hash the body, although the key is unknown
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/%s; d=example.com; s=s; h=from;\r\n"
    b" bh=MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=; b=AAAA\r\n"
)


async def measured(
    kind: Kind, folder: Path, many: int, seconds: tuple[int, float], bar: Progress
) -> list[Fact]:
    """Measure the latency of small messages beside large ones, and the memory of these."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    smtp, following, names = free_port(), free_port(), free_port()
    keys = folder / "keys"
    more = {
        "MERGANSER_SMTP": f"{HOST}:{smtp}",
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{following}?tls=never",
        "MERGANSER_DNS_RESOLVER": f"{HOST}:{names}",
        "MERGANSER_ARC_KEYS": str(keys),
        "MERGANSER_HOSTNAME": "mx.bench.example",
    }
    server = Server(folder / "large", url, more=more)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task(NAME, total=1)
    arc_keys.put(keys, "bench.example", "s")
    async with opened(settings, migrate=True) as world:
        await make_user(world, PLAIN)
        await make_user(world, FORWARDS, FAR)
    async with running(server.start) as pid:
        outside = [str(number) for number in (many, smtp, following, names)]
        command = (sys.executable, "-m", "bench.scenarios.large_message", *outside)
        times, above = await beside(Target(server.lmtp, pid), command, PLAIN, seconds)
    bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return [
        Fact(f"{BESIDE}, {SENT_ON}", times, "times"),
        Fact(f"{ABOVE}, {SENT_ON}", above, "MiB"),
    ]


async def beside(
    lmtp: Target, command: Sequence[str], to: str, size: tuple[int, float]
) -> tuple[float, float]:
    """Measure small messages alone, then while a command sends large ones.

    Returns the ratio of the p99 latencies, and the most memory above idle, in MiB, of the
    server and its child processes.
    """
    letters, (rounds, seconds) = small_letters(SMALL), size
    await settled(lmtp.pid)
    alone = await delivered(lmtp, letters, to, connections=1, seconds=rounds * seconds)
    await settled(lmtp.pid)
    idle, most, over = whole_memory(lmtp.pid), list[int](), asyncio.Event()

    async def look() -> None:
        while not over.is_set():
            most.append(await asyncio.to_thread(whole_memory, lmtp.pid))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), LOOK)

    async def large() -> None:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        try:
            if code := await process.wait():
                raise RuntimeError(f"large letters were not delivered: {code}")
        finally:
            over.set()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def small() -> Figure:
        runs = list[Figure]()
        while not over.is_set():
            runs.append(await delivered(lmtp, letters, to, connections=1, seconds=seconds))
        return max(runs, key=lambda run: run.p99)

    busy, _, _ = await asyncio.gather(small(), look(), large())
    return busy.p99 / alone.p99, (max(most) - idle) / 1024


def small_letters(size: int) -> Iterator[bytes]:
    """Yield messages of this size endlessly."""
    writer, number = Writer(seed=size), 0
    while True:
        yield writer.letter(number, size=size)
        number += 1


def large_letter() -> bytes:
    """Return a message of 50 MiB with an attachment."""
    writer = Writer(seed=LARGE)
    return writer.letter(0, attached=writer.random.randbytes(LARGE * 3 // 4))


class Ignorant(DatagramProtocol):
    """A DNS server that answers NXDOMAIN for every name."""

    def connection_made(self, transport: Any) -> None:
        """Store the transport."""
        self._transport = cast(DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer NXDOMAIN with the question section."""
        empty = data[4:6] + bytes(6)
        self._transport.sendto(data[:2] + UNKNOWN + empty + _question(data), addr)


def _question(data: bytes) -> bytes:
    end = data.index(0, 12) + 5
    return data[12:end]


class Elsewhere:
    """The next hop: an SMTP server that accepts and counts all messages."""

    def __init__(self) -> None:
        self.came = asyncio.Semaphore(0)
        self.open = dict[StreamWriter, asyncio.Task[None] | None]()

    async def converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Accept messages until the client disconnects."""
        self.open[writer] = asyncio.current_task()
        writer.write(b"220 elsewhere.example\r\n")
        with suppress(ConnectionError):
            while line := await reader.readline():
                if line.upper().startswith(b"QUIT"):
                    break
                if line.upper().startswith(b"DATA"):
                    writer.write(b"354 Go on\r\n")
                    await self._take(reader)
                    self.came.release()
                writer.write(b"250 2.0.0 Fine\r\n")
        await hang_up(writer)
        del self.open[writer]

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(filter(None, self.open.values()))
        for writer in self.open:
            writer.close()
        await asyncio.gather(*tasks)

    async def _take(self, reader: StreamReader) -> None:
        end = b""
        while not end.endswith(b"\r\n.\r\n"):
            piece = await reader.read(STEP)
            if not piece:
                raise ConnectionError("hung up on")
            end = (end + piece)[-5:]


async def _hand_in(many: int, smtp: int, following: int, names: int) -> None:
    raw, elsewhere = large_letter(), Elsewhere()
    head = b"".join(SIGNED % form for form in (b"relaxed", b"simple"))
    loop = asyncio.get_running_loop()
    there, _ = await loop.create_datagram_endpoint(Ignorant, local_addr=(HOST, names))
    listening = await asyncio.start_server(elsewhere.converse, HOST, following, limit=STEP)
    neighbour = Neighbour(*await asyncio.open_connection(HOST, smtp))
    await neighbour.reply()
    neighbour.writer.write(b"EHLO elsewhere.example\r\n")
    await neighbour.reply()
    for number in range(many):
        reply = await neighbour.deliver(FORWARDS, b"X-Number: %d\r\n" % number + head + raw)
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
    async with asyncio.timeout(PATIENCE):
        for _ in range(many):
            await elsewhere.came.acquire()
    await neighbour.close()
    listening.close()
    await elsewhere.close()
    there.close()


if __name__ == "__main__":
    asyncio.run(_hand_in(*map(int, sys.argv[1:5])))
