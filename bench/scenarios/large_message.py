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

from bench.figures.goals import MEMORY_OF_LARGE, P99_DURING_LARGE, SMTP_AND_REDIRECT
from bench.figures.measurements import LoadFigure, MeasuredValue
from bench.load.http_client import BenchmarkTarget
from bench.load.lmtp_client import LmtpConnection, measure_deliveries
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    PROJECT_ROOT,
    START_STOP_TIMEOUT,
    MerganserServer,
    close_connection,
    logged_errors,
    memory_of_process_tree,
    run_until_exit,
    wait_until_idle,
)
from bench.servers.ports import HOST, free_port
from merganser.server import arc_keys
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings

TITLE = "deliveries during large messages that are forwarded"
PLAIN_ADDRESS = "plain@bench.example"
FORWARDING_ADDRESS = "onward@bench.example"
EXTERNAL_ADDRESS = "far@elsewhere.example"
SMALL_SIZE, LARGE_SIZE = 2_000, 50 * 1024 * 1024  # bytes
READ_SIZE = 1 << 20  # bytes
POLL_SECONDS = 0.02
NXDOMAIN_FLAGS = b"\x81\x83"
DKIM_HEADER = (  # makes the server hash the body, although the key is unknown
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/%s; d=example.com; s=s; h=from;\r\n"
    b" bh=MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=; b=AAAA\r\n"
)


async def measure_large_messages(
    database_kind: DatabaseKind,
    folder: Path,
    message_count: int,
    rounds_and_seconds: tuple[int, float],
    progress: Progress,
) -> list[MeasuredValue]:
    """Measure the latency of small messages during large ones, and the memory of these."""
    url = start_database(database_kind, folder)
    smtp, following, names = free_port(), free_port(), free_port()
    keys = folder / "keys"
    extra_settings = {
        "MERGANSER_SMTP_LISTEN": f"{HOST}:{smtp}",
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{following}?tls=never",
        "MERGANSER_DNS_RESOLVER": f"{HOST}:{names}",
        "MERGANSER_ARC_KEYS_FOLDER": str(keys),
        "MERGANSER_HOSTNAME": "mx.bench.example",
    }
    server = MerganserServer(folder / "large", url, extra_environment=extra_settings)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    task = progress.add_task(TITLE, total=1)
    arc_keys.create_or_load_arc_key(keys, "bench.example", "s")
    async with open_environment(settings, migrate=True) as environment:
        await create_user(environment, PLAIN_ADDRESS)
        await create_user(environment, FORWARDING_ADDRESS, EXTERNAL_ADDRESS)
    async with run_until_exit(server.start) as pid:
        outside = [str(number) for number in (message_count, smtp, following, names)]
        command = (sys.executable, "-m", "bench.scenarios.large_message", *outside)
        times, above = await measure_during_large(
            BenchmarkTarget(server.lmtp_port, pid), command, PLAIN_ADDRESS, rounds_and_seconds
        )
    progress.remove_task(task)
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return [
        MeasuredValue(f"{P99_DURING_LARGE}, {SMTP_AND_REDIRECT}", times, "times"),
        MeasuredValue(f"{MEMORY_OF_LARGE}, {SMTP_AND_REDIRECT}", above, "MiB"),
    ]


async def measure_during_large(
    lmtp: BenchmarkTarget,
    command: Sequence[str],
    recipient: str,
    rounds_and_seconds: tuple[int, float],
) -> tuple[float, float]:
    """Measure small messages alone, then while a command sends large ones.

    Returns the ratio of the p99 latencies, and the most memory above idle, in MiB, of the
    server and its child processes.
    """
    messages, (rounds, seconds) = small_messages(SMALL_SIZE), rounds_and_seconds
    await wait_until_idle(lmtp.pid)
    alone = await measure_deliveries(
        lmtp, messages, recipient, connection_count=1, seconds=rounds * seconds
    )
    await wait_until_idle(lmtp.pid)
    idle, most, over = memory_of_process_tree(lmtp.pid), list[int](), asyncio.Event()

    async def poll_memory() -> None:
        while not over.is_set():
            most.append(await asyncio.to_thread(memory_of_process_tree, lmtp.pid))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), POLL_SECONDS)

    async def send_large() -> None:
        process = await asyncio.create_subprocess_exec(*command, cwd=PROJECT_ROOT)
        try:
            if code := await process.wait():
                raise RuntimeError(f"large messages were not delivered: exit code {code}")
        finally:
            over.set()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def send_small() -> LoadFigure:
        runs = list[LoadFigure]()
        while not over.is_set():
            runs.append(
                await measure_deliveries(
                    lmtp, messages, recipient, connection_count=1, seconds=seconds
                )
            )
        return max(runs, key=lambda run: run.p99)

    busy, _, _ = await asyncio.gather(send_small(), poll_memory(), send_large())
    return busy.p99 / alone.p99, (max(most) - idle) / 1024


def small_messages(size: int) -> Iterator[bytes]:
    """Yield messages of this size endlessly."""
    writer, number = MessageGenerator(seed=size), 0
    while True:
        yield writer.make_message(number, size=size)
        number += 1


def large_message() -> bytes:
    """Return a message of 50 MiB with an attachment."""
    writer = MessageGenerator(seed=LARGE_SIZE)
    return writer.make_message(0, attachment=writer.random.randbytes(LARGE_SIZE * 3 // 4))


class EmptyDnsServer(DatagramProtocol):
    """A DNS server that answers NXDOMAIN for every name."""

    def connection_made(self, transport: Any) -> None:
        """Store the transport."""
        self._transport = cast(DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer NXDOMAIN with the question section."""
        empty = data[4:6] + bytes(6)
        self._transport.sendto(data[:2] + NXDOMAIN_FLAGS + empty + _question_of_query(data), addr)


def _question_of_query(data: bytes) -> bytes:
    end = data.index(0, 12) + 5
    return data[12:end]


class NextHopServer:
    """The next hop: an SMTP server that accepts and counts all messages."""

    def __init__(self) -> None:
        self.received = asyncio.Semaphore(0)
        self.connections = dict[StreamWriter, asyncio.Task[None] | None]()

    async def handle_connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Accept messages until the client disconnects."""
        self.connections[writer] = asyncio.current_task()
        writer.write(b"220 elsewhere.example\r\n")
        with suppress(ConnectionError):
            while line := await reader.readline():
                if line.upper().startswith(b"QUIT"):
                    break
                if line.upper().startswith(b"DATA"):
                    writer.write(b"354 Go on\r\n")
                    await self._read_message(reader)
                    self.received.release()
                writer.write(b"250 2.0.0 Fine\r\n")
        await close_connection(writer)
        del self.connections[writer]

    async def close_connections(self) -> None:
        """Close all connections."""
        tasks = list(filter(None, self.connections.values()))
        for writer in self.connections:
            writer.close()
        await asyncio.gather(*tasks)

    async def _read_message(self, reader: StreamReader) -> None:
        end = b""
        while not end.endswith(b"\r\n.\r\n"):
            chunk = await reader.read(READ_SIZE)
            if not chunk:
                raise ConnectionError("hung up on")
            end = (end + chunk)[-5:]


async def _send_large_messages(
    message_count: int, smtp_port: int, next_hop_port: int, dns_port: int
) -> None:
    raw, elsewhere = large_message(), NextHopServer()
    head = b"".join(DKIM_HEADER % form for form in (b"relaxed", b"simple"))
    loop = asyncio.get_running_loop()
    dns_transport, _ = await loop.create_datagram_endpoint(
        EmptyDnsServer, local_addr=(HOST, dns_port)
    )
    listening = await asyncio.start_server(
        elsewhere.handle_connection, HOST, next_hop_port, limit=READ_SIZE
    )
    smtp_connection = LmtpConnection(*await asyncio.open_connection(HOST, smtp_port))
    await smtp_connection.read_reply()
    smtp_connection.writer.write(b"EHLO elsewhere.example\r\n")
    await smtp_connection.read_reply()
    for number in range(message_count):
        reply = await smtp_connection.deliver(
            FORWARDING_ADDRESS, b"X-Number: %d\r\n" % number + head + raw
        )
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
    async with asyncio.timeout(START_STOP_TIMEOUT):
        for _ in range(message_count):
            await elsewhere.received.acquire()
    await smtp_connection.close()
    listening.close()
    await elsewhere.close_connections()
    dns_transport.close()


if __name__ == "__main__":
    asyncio.run(_send_large_messages(*map(int, sys.argv[1:5])))
