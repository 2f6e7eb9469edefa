"""Measure the CPU time of refused connections of a banned network, and their effect on others.

The CPU time is compared with that of programs that only accept and close connections. Loopback
and the addresses of the platform's own servers are never refused. Therefore the connections come
from another address of this machine, which is removed from the rows of the server.
"""

import asyncio
import itertools
import logging
import statistics
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from rich.progress import Progress
from sqlalchemy import Connection, update

from bench.figures.goals import REFUSAL_CPU_RATIO, REFUSAL_P99_RATIO
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.documents import PAGE_QUERY
from bench.load.http_client import BenchmarkTarget, encode_post_request
from bench.load.sample_account import create_sample_account
from bench.scenarios.sign_ins import REQUESTS_PER_SECOND, send_at_fixed_rate
from bench.servers.accept_and_close import ASYNCIO, BLOCKING, UVLOOP
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import (
    PROJECT_ROOT,
    MerganserServer,
    cpu_seconds_precise,
    run_until_exit,
    spawn,
    wait_until_idle,
)
from bench.servers.ports import HOST, free_port
from merganser.server.environment_factory import open_environment, root_context
from models.cluster.nodes import ClusterNode
from models.runtime.machine_addresses import machine_ip_addresses
from models.runtime.server_processes import ServerProcess
from models.store.database import Database
from resolvers.throttling import bans

TITLE = "operations: refused connections"
HTTP, LMTP = "HTTP, closed", "LMTP, reply 554"
REFUSED_PER_SECOND = 1000
MESSAGE_COUNT, MAILBOX_COUNT = 500, 10
CPU_ROUNDS, P99_ROUNDS = 7, 5
IDLE_SECONDS = 2.0  # in which the CPU time of the idle server is measured
BAN_TIME = timedelta(days=1)
# Networks of different length: the server looks up each length
OTHER_BANS = [f"11.0.0.0/{length}" for length in range(16, 33)]
REFUSAL_TIMEOUT = 30.0  # seconds until the server refuses its own address
HEALTH_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class RefusalSize:
    """The number of connections of a CPU measurement, and the length of a round with pages."""

    connection_count: int = 3000
    round_seconds: float = 5.0
    p99_rounds: int = P99_ROUNDS


@dataclass(frozen=True, slots=True)
class RefusalTargets:
    """A server that refuses connections from `source_ip`, and the programs to compare with."""

    source_ip: str
    merganser: BenchmarkTarget
    lmtp: BenchmarkTarget
    accepting: Mapping[str, BenchmarkTarget]  # by kind


async def measure_ban_refusal(
    database_kind: DatabaseKind, folder: Path, size: RefusalSize, progress: Progress
) -> list[MeasuredValue]:
    """Return the CPU time of a refused connection, and the p99 of pages with and without them.

    Returns nothing if this machine has only loopback addresses.
    """
    source_ip = next((ip for ip in machine_ip_addresses() if ":" not in ip), None)
    if source_ip is None:
        progress.console.print(f"{TITLE}: not measured. This machine has only loopback addresses.")
        return []
    task = progress.add_task(TITLE, total=CPU_ROUNDS + size.p99_rounds)
    async with _run_refusal_targets(database_kind, folder, source_ip) as (targets, page_request):
        facts = await _measure_cpu(targets, size, partial(progress.advance, task))
        facts += await _measure_p99(targets, page_request, size, partial(progress.advance, task))
    progress.remove_task(task)
    return facts


@asynccontextmanager
async def _run_refusal_targets(
    database_kind: DatabaseKind, folder: Path, source_ip: str
) -> AsyncGenerator[tuple[RefusalTargets, bytes]]:
    """Run the servers, and yield them with a request for a page of an inbox."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "bans", url)
    settings = server_settings(server)
    account = await create_sample_account(
        server.data_folder,
        url,
        message_count=MESSAGE_COUNT,
        mailbox_count=MAILBOX_COUNT,
        report_progress=lambda _delivered, _total: None,
    )
    async with open_environment(settings) as environment:
        with _without_warnings():  # each ban causes one
            await bans.add_bans(root_context(environment), [source_ip, *OTHER_BANS], BAN_TIME, None)
    async with AsyncExitStack() as stack:
        pid = await stack.enter_async_context(run_until_exit(server.start))
        targets = RefusalTargets(
            source_ip,
            BenchmarkTarget(server.http_port, pid, account.api_key),
            BenchmarkTarget(server.lmtp_port, pid),
            {
                kind: await stack.enter_async_context(_run_accepting_program(kind, folder))
                for kind in (ASYNCIO, BLOCKING, UVLOOP)
            },
        )
        await _remove_addresses_of_servers(settings.database_url)
        await _wait_until_refused(source_ip, server.http_port)
        await wait_until_idle(pid)
        body = {"query": PAGE_QUERY, "variables": {"box": account.inbox_id}}
        yield targets, encode_post_request(targets.merganser, "/graphql", body)


@contextmanager
def _without_warnings() -> Generator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@asynccontextmanager
async def _run_accepting_program(kind: str, folder: Path) -> AsyncGenerator[BenchmarkTarget]:
    """Run a program that accepts and closes connections."""
    port = free_port()
    command = (sys.executable, "-m", "bench.servers.accept_and_close", kind, str(port))

    async def start() -> Process:
        environment = MerganserServer(folder).process_environment()
        process = await spawn(command, environment, folder / f"{kind}.log")
        async with asyncio.timeout(REFUSAL_TIMEOUT):
            while process.returncode is None:
                with suppress(OSError):
                    await _read_until_closed(HOST, port, b"")
                    break
                await asyncio.sleep(0.1)
        return process

    async with run_until_exit(start) as pid:
        yield BenchmarkTarget(port, pid)


async def _remove_addresses_of_servers(database_url: str) -> None:
    """Make all servers forget the addresses of their machines, which are never refused."""

    def remove(connection: Connection) -> None:
        connection.execute(update(ServerProcess).values(ip_addresses=[]))
        connection.execute(update(ClusterNode).values(ip_addresses=[]))

    database = Database(database_url)
    try:
        await database.run_transaction(remove)
    finally:
        await database.close()


async def _wait_until_refused(source_ip: str, port: int) -> None:
    """Wait until the server closes connections from this address. Raises TimeoutError."""
    async with asyncio.timeout(REFUSAL_TIMEOUT):
        while await _read_until_closed(source_ip, port, HEALTH_REQUEST):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.2)


async def _read_until_closed(source_ip: str, port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source_ip, 0))
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def _attempt_connections(source_ip: str, port: int, count: int, rate: float) -> float:
    """Open connections from another process, and return the seconds that they took.

    Raises RuntimeError if it fails.
    """
    arguments = (source_ip, str(port), str(count), str(rate))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load.connection_attempts", *arguments),
        cwd=PROJECT_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the connections failed with exit code {process.returncode}")
    return float(output)


async def _cpu_seconds_per_connection(
    source_ip: str, target: BenchmarkTarget, count: int, idle_share: float = 0.0
) -> float:
    """Return the CPU seconds of the server per connection, without its share of an idle core."""
    before, started_at = cpu_seconds_precise(target.pid), time.monotonic()
    await _attempt_connections(source_ip, target.port, count, 0)
    seconds = cpu_seconds_precise(target.pid) - before
    return (seconds - idle_share * (time.monotonic() - started_at)) / count


async def _measure_cpu(
    targets: RefusalTargets, size: RefusalSize, advance: partial[None]
) -> list[MeasuredValue]:
    """Compare the CPU time of a refused connection with both accepting programs, in turn."""
    merganser = targets.merganser
    before = cpu_seconds_precise(merganser.pid)
    await asyncio.sleep(IDLE_SECONDS)
    idle_share = (cpu_seconds_precise(merganser.pid) - before) / IDLE_SECONDS
    measured = {
        HTTP: (merganser, idle_share),
        LMTP: (targets.lmtp, idle_share),
        **{kind: (target, 0.0) for kind, target in targets.accepting.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(CPU_ROUNDS):
        for name, (target, share) in measured.items():
            cost = await _cpu_seconds_per_connection(
                targets.source_ip, target, size.connection_count, share
            )
            seconds[name].append(cost)
        advance()
    medians = {name: statistics.median(costs) for name, costs in seconds.items()}
    return [
        *(
            MeasuredValue(f"CPU of a refused connection, {name}", medians[name] * 1e6, "µs")
            for name in (HTTP, LMTP)
        ),
        *(
            MeasuredValue(
                f"CPU to accept and close a connection, {kind}", medians[kind] * 1e6, "µs"
            )
            for kind in targets.accepting
        ),
        *(
            MeasuredValue(
                f"{REFUSAL_CPU_RATIO}, {name}, to accept and close, {kind}",
                medians[name] / medians[kind],
                "times",
            )
            for name in (HTTP, LMTP)
            for kind in targets.accepting
        ),
    ]


async def _measure_p99(
    targets: RefusalTargets, page_request: bytes, size: RefusalSize, advance: partial[None]
) -> list[MeasuredValue]:
    """Compare the p99 of inbox pages without and during connections, as medians of rounds.

    During connections to the accepting program the load generator costs the same, so that the
    third value shows how much of the difference the machine causes.
    """
    ports = {
        "refused": targets.merganser.port,
        "accepted and closed by another process": targets.accepting[ASYNCIO].port,
    }
    unloaded = list[float]()
    loaded: dict[str, list[float]] = {name: [] for name in ports}
    rates = list[float]()
    for _ in range(size.p99_rounds):
        unloaded.append(await _p99_of_pages(targets, page_request, size.round_seconds))
        for name, port in ports.items():
            count = round(REFUSED_PER_SECOND * size.round_seconds)
            connections = asyncio.create_task(
                _attempt_connections(targets.source_ip, port, count, REFUSED_PER_SECOND)
            )
            loaded[name].append(await _p99_of_pages(targets, page_request, size.round_seconds))
            took = await connections
            if name == "refused":
                rates.append(count / took)
        advance()
    before = statistics.median(unloaded) * 1e3
    facts = [
        MeasuredValue(f"{REQUESTS_PER_SECOND} inbox pages per second, p99", before, "ms"),
        MeasuredValue("refused connections per second", statistics.median(rates), ""),
    ]
    for name, values in loaded.items():
        during = f"during {REFUSED_PER_SECOND:,} connections per second, {name}"
        after = statistics.median(values) * 1e3
        facts.append(MeasuredValue(f"the same {during}", after, "ms"))
        facts.append(MeasuredValue(f"{REFUSAL_P99_RATIO} {during}", after / before, "times"))
    return facts


async def _p99_of_pages(targets: RefusalTargets, page_request: bytes, seconds: float) -> float:
    """Return the p99 in seconds of pages at a fixed rate."""
    requests = itertools.repeat(page_request)
    return percentile(await send_at_fixed_rate(targets.merganser.port, requests, seconds), 0.99)
