"""`python -m bench.scenarios.journal_cost ROUNDS`: measure the journal's share of a delivery.

Messages are delivered in this process, into the database of the settings. In every other round
the journal's statements are left out. The last line printed is JSON: the share in percent of
CPU and time of a delivery. Many short rounds are compared by their medians, so that other load
of the machine affects both alike.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import orjson
import uvloop
from rich.progress import Progress
from sqlalchemy import text

from bench.figures.goals import JOURNAL
from bench.figures.measurements import Fact
from bench.load.message_generator import Writer
from bench.load.sample_account import TAKER, make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import ROOT, Server, fine_cpu, stop
from mail.envelope.local_recipient import Recipient
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import opened
from merganser.settings.settings import read
from models.events import journal
from models.runtime.environment import World
from models.store.prepared_statements import Sent

NAME = "live: writing the journal"
LETTER = 20_000  # bytes
TOGETHER = 8  # delivered concurrently
WARM = 10
SENDER = "bob@example.com"


async def measured(kind: Kind, folder: Path, rounds: int, bar: Progress) -> list[Fact]:
    """Run this module as a process over a new database, and return its values."""
    task = bar.add_task("deliveries with and without the journal", total=None)
    url = postgres(folder) if kind is Kind.POSTGRES else None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.scenarios.journal_cost", str(rounds)),
        env=Server(folder / "telling", url).settings(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            await stop(process)
    if process.returncode:
        raise RuntimeError(f"bench.telling ended with {process.returncode}")
    bar.remove_task(task)
    found = orjson.loads(said.splitlines()[-1])
    return [
        Fact(f"{JOURNAL}, CPU", found["cpu"], "%"),
        Fact(f"{JOURNAL}, time", found["time"], "%"),
        Fact("a delivery in process, and its store's part, CPU", found["delivery"], "µs"),
    ]


class Took(NamedTuple):
    """CPU and wall clock seconds of a round."""

    cpu: float
    time: float


async def shares(world: World, rounds: int) -> dict[str, float]:
    """Return the journal's share in percent, and the CPU of a delivery in µs."""
    names = [
        f"{number}.{TAKER}" for number in range(TOGETHER)
    ]  # one account each, to avoid lock waits
    for name in names:
        await make_user(world, name)
    to = [await address_resolution.recipient(world, name) for name in names]
    letters, store = _letters(), list[int]()
    found: dict[bool, list[Took]] = {True: [], False: []}
    for number in range(2 * (WARM + rounds)):
        told = number % 4 in {0, 3}  # each order equally often
        if number == 2 * WARM:
            store = await _backends(world)  # all connections are open now
        with silent(told=told):
            took = await _round(world, to, [next(letters) for _ in range(TOGETHER)], store)
        if number >= 2 * WARM:
            found[told].append(took)
    whole, less = _medians(found[True]), _medians(found[False])
    return {
        "cpu": 100 * (1 - less.cpu / whole.cpu),
        "time": 100 * (1 - less.time / whole.time),
        "delivery": whole.cpu / TOGETHER * 1e6,
    }


def _medians(rounds: list[Took]) -> Took:
    return Took(*map(statistics.median, zip(*rounds, strict=True)))


@contextmanager
def silent(*, told: bool) -> Iterator[None]:
    """Leave out the journal's statements, unless enabled."""

    def nothing(*_args: Any, **_kwargs: Any) -> Sequence[Sent]:
        return []

    if told:
        yield
        return
    with patch.object(journal, "told", nothing):
        yield


async def _round(
    world: World, everybody: list[Recipient], letters: list[bytes], store: list[int]
) -> Took:
    """Deliver messages concurrently, and return the times."""

    async def work(raw: bytes, to: Recipient) -> None:
        await received_messages.receive(world, await received_messages.read(raw), to, SENDER)

    used, began = _cpu(store), time.perf_counter()
    await asyncio.gather(*map(work, letters, everybody))
    took = time.perf_counter() - began
    return Took(_cpu(store) - used, took)


def _letters() -> Iterator[bytes]:
    writer = Writer(seed=LETTER)
    return (writer.letter(number, size=LETTER) for number in itertools.count())


async def _backends(world: World) -> list[int]:
    """Return the processes of PostgreSQL for this database; none for SQLite."""
    if world.database.dialect == "sqlite":
        return []
    ours = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    async with world.database.engine.connect() as connection:
        return [row.pid for row in await connection.execute(ours)]


def _cpu(store: list[int]) -> float:
    """Return the CPU seconds of this process and of the database processes."""
    return sum(map(fine_cpu, store)) + time.process_time()


async def main(rounds: int) -> None:
    """Print the shares as JSON."""
    async with opened(read(), migrate=True) as world:
        print(orjson.dumps(await shares(world, rounds)).decode())  # noqa: T201 - the output


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
