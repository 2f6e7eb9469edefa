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

from bench.figures.goals import SENT_OUT
from bench.figures.measurements import Fact
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import ROOT, Server, broken, cpu, running
from bench.servers.ports import HOST
from mail.mime.header_encoding import Named
from merganser.server.environment_factory import on_behalf, opened
from merganser.settings.settings import Settings
from models.queue.tables import Delivery
from models.runtime.environment import World
from resolvers.submission import create as submission_create
from resolvers.submission.create import Outgoing

NAME = "mail that leaves"
MESSAGES, LETTER = 3000, 20_000
LONGEST = 600.0  # seconds
LOOK = 0.1
AT_ONCE = 1


@dataclass(frozen=True, slots=True)
class Stood:
    """The counters of the SMTP sink."""

    messages: int
    connections: int
    first: float
    last: float


async def measured(kind: Kind, folder: Path, many: int, bar: Progress) -> list[Fact]:
    """Queue messages, then start a server that sends them.

    Raises RuntimeError if not all arrive.
    """
    url = postgres(folder) if kind is Kind.POSTGRES else None
    async with _sink() as port:
        more = {"MERGANSER_NEXT_HOP": f"smtp://{HOST}:{port}"}
        server = Server(folder / "sending", url, more=more)
        settings = Settings(
            data=server.folder,
            recipients_daily=0,
            store=url or f"sqlite+aiosqlite:///{server.folder}/merganser.db",
        )
        task = bar.add_task(NAME, total=2)
        async with opened(settings, migrate=True) as world:
            await _queued(world, many)
            bar.advance(task)
        async with running(server.start) as pid:
            async with opened(settings, migrate=False) as world, asyncio.timeout(LONGEST):
                while await _waiting(world):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(LOOK)
            used, stood = cpu(pid), await _stood(port)
        bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    if stood.messages != many:
        raise RuntimeError(f"{stood.messages} of {many} messages came")
    return [
        Fact(SENT_OUT, many / (stood.last - stood.first), ""),
        Fact("connections for that", stood.connections, ""),
        Fact("CPU of a message that leaves, with the server's start", used / many * 1e3, "ms"),
    ]


@asynccontextmanager
async def _sink() -> AsyncGenerator[int]:
    """Run an SMTP sink, and yield its port."""
    command = (sys.executable, "-m", "bench.servers.smtp_sink")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # noqa: S101 - for the types
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def _stood(port: int) -> Stood:
    reader, writer = await asyncio.open_connection(HOST, port)
    await reader.readline()
    writer.write(b"STAT\r\n")
    words = (await reader.readline()).split()
    writer.close()
    return Stood(int(words[1]), int(words[2]), float(words[3]), float(words[4]))


async def _queued(world: World, many: int) -> None:
    """Submit messages for one recipient each, all of one domain."""
    user = await make_user(world, READER)
    ctx = on_behalf(world, user.id)
    text = "A line of text, as long as most are, so that it looks like mail.\n"
    body = text * (LETTER // len(text))

    async def one(number: int) -> None:
        to = [Named(f"n{number}@elsewhere.example")]
        await submission_create.send(ctx, Outgoing(to=to, subject=f"Number {number}", text=body))

    for start in range(0, many, AT_ONCE):
        await asyncio.gather(*(one(n) for n in range(start, min(start + AT_ONCE, many))))


async def _waiting(world: World) -> bool:
    asked = select(func.count()).where(col(Delivery.next_at).is_not(None))
    return bool((await world.database.read(asked))[0][0])
