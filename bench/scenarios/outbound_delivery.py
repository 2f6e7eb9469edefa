"""Measure outbound delivery of queued messages to one local server."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from sqlalchemy import func, select
from sqlmodel import col

from bench.figures.goals import OUTBOUND_RATE
from bench.figures.measurements import MeasuredValue
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    PROJECT_ROOT,
    MerganserServer,
    cpu_seconds,
    logged_errors,
    run_until_exit,
)
from bench.servers.ports import HOST
from mail.mime.header_encoding import NamedAddress
from merganser.server.environment_factory import open_environment, user_context
from merganser.settings.settings import Settings
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest

TITLE = "outbound delivery"
MESSAGE_COUNT, MESSAGE_SIZE = 3000, 20_000
QUEUE_TIMEOUT = 600.0  # seconds
POLL_SECONDS = 0.1
CONCURRENT_SUBMISSIONS = 1


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """The counters of the SMTP sink."""

    message_count: int
    connection_count: int
    first_at: float
    last_at: float


async def measure_outbound_delivery(
    database_kind: DatabaseKind, folder: Path, message_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Queue messages, then start a server that sends them.

    Raises RuntimeError if not all arrive.
    """
    url = start_database(database_kind, folder)
    async with _run_sink() as port:
        extra_settings = {"MERGANSER_NEXT_HOP": f"smtp://{HOST}:{port}"}
        server = MerganserServer(folder / "sending", url, extra_environment=extra_settings)
        settings = Settings(
            data=server.data_folder,
            limits_recipients_per_day=0,
            database_url=url or f"sqlite+aiosqlite:///{server.data_folder}/merganser.db",
        )
        task = progress.add_task(TITLE, total=2)
        async with open_environment(settings, migrate=True) as environment:
            await _submit_messages(environment, message_count)
            progress.advance(task)
        async with run_until_exit(server.start) as pid:
            async with (
                open_environment(settings, migrate=False) as environment,
                asyncio.timeout(QUEUE_TIMEOUT),
            ):
                while await _has_waiting_entries(environment):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(POLL_SECONDS)
            used, statistics_before = cpu_seconds(pid), await _read_sink_statistics(port)
        progress.remove_task(task)
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    if statistics_before.message_count != message_count:
        raise RuntimeError(f"{statistics_before.message_count} of {message_count} messages arrived")
    return [
        MeasuredValue(
            OUTBOUND_RATE,
            message_count / (statistics_before.last_at - statistics_before.first_at),
            "",
        ),
        MeasuredValue("connections to that server", statistics_before.connection_count, ""),
        MeasuredValue(
            "CPU per sent message, with the start of the server",
            used / message_count * 1e3,
            "ms",
        ),
    ]


@asynccontextmanager
async def _run_sink() -> AsyncGenerator[int]:
    """Run an SMTP sink, and yield its port."""
    command = (sys.executable, "-m", "bench.servers.smtp_sink")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=PROJECT_ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # noqa: S101 - for the types
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def _read_sink_statistics(port: int) -> SinkStatistics:
    reader, writer = await asyncio.open_connection(HOST, port)
    await reader.readline()
    writer.write(b"STAT\r\n")
    fields = (await reader.readline()).split()
    writer.close()
    return SinkStatistics(int(fields[1]), int(fields[2]), float(fields[3]), float(fields[4]))


async def _submit_messages(environment: Environment, message_count: int) -> None:
    """Submit messages for one recipient each, all of one domain."""
    user = await create_user(environment, READER_ADDRESS)
    ctx = user_context(environment, user.id)
    text = "A line of text, as long as most are, so that it looks like mail.\n"
    body = text * (MESSAGE_SIZE // len(text))

    async def submit(number: int) -> None:
        to = [NamedAddress(f"n{number}@elsewhere.example")]
        await submission_create.compose_and_queue_message(
            ctx, SendRequest(to=to, subject=f"Number {number}", text=body)
        )

    for start in range(0, message_count, CONCURRENT_SUBMISSIONS):
        await asyncio.gather(
            *(submit(n) for n in range(start, min(start + CONCURRENT_SUBMISSIONS, message_count)))
        )


async def _has_waiting_entries(environment: Environment) -> bool:
    statement = select(func.count()).where(col(QueueEntry.next_at).is_not(None))
    return bool((await environment.database.read(statement))[0][0])
