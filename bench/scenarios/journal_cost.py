"""`python -m bench.scenarios.journal_cost ROUNDS`: measure the journal's share of a delivery.

Messages are delivered in this process, into the database of the settings. In every other round
the journal's statements are left out. The last line printed is JSON: the share in percent of
CPU and time of a delivery. Many short rounds are compared by their medians, so that other load
of the machine affects both alike.
"""

import asyncio
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

from bench.figures.goals import JOURNAL_SHARE
from bench.figures.measurements import MeasuredValue
from bench.load.message_generator import endless_messages
from bench.load.sample_account import RECEIVER_ADDRESS, create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    PROJECT_ROOT,
    MerganserServer,
    cpu_seconds_precise,
    stop_process,
)
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import read_settings
from models.events import journal
from models.runtime.environment import Environment
from models.store.prepared_statements import StatementWithValues

TITLE = "live: cost of the journal"
MESSAGE_SIZE = 20_000  # bytes
MESSAGES_PER_ROUND = 8  # delivered concurrently
WARM_UP_ROUNDS = 10
SENDER = "bob@example.com"


async def measure_journal_cost(
    database_kind: DatabaseKind, folder: Path, rounds: int, progress: Progress
) -> list[MeasuredValue]:
    """Run this module as a process over a new database, and return its values."""
    task = progress.add_task("deliveries with and without the journal", total=None)
    url = start_database(database_kind, folder)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.scenarios.journal_cost", str(rounds)),
        env=MerganserServer(folder / "telling", url).process_environment(),
        cwd=PROJECT_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            await stop_process(process)
    if process.returncode:
        raise RuntimeError(f"bench.telling ended with {process.returncode}")
    progress.remove_task(task)
    found = orjson.loads(output.splitlines()[-1])
    return [
        MeasuredValue(f"{JOURNAL_SHARE}, CPU", found["cpu"], "%"),
        MeasuredValue(f"{JOURNAL_SHARE}, time", found["time"], "%"),
        MeasuredValue(
            "CPU of a delivery inside the process, with its database work", found["delivery"], "µs"
        ),
    ]


class RoundTimes(NamedTuple):
    """CPU and wall clock seconds of a round."""

    cpu: float
    time: float


async def measure_shares(environment: Environment, rounds: int) -> dict[str, float]:
    """Return the journal's share in percent, and the CPU of a delivery in µs."""
    # one account each, to avoid lock waits
    names = [f"{number}.{RECEIVER_ADDRESS}" for number in range(MESSAGES_PER_ROUND)]
    for name in names:
        await create_user(environment, name)
    to = [await address_resolution.load_recipient_below_limits(environment, name) for name in names]
    messages, store = endless_messages(MESSAGE_SIZE), list[int]()
    found: dict[bool, list[RoundTimes]] = {True: [], False: []}
    for number in range(2 * (WARM_UP_ROUNDS + rounds)):
        with_journal = number % 4 in {0, 3}  # each order equally often
        if number == 2 * WARM_UP_ROUNDS:
            store = await postgres_process_ids(environment)  # all connections are open now
        with without_journal(is_enabled=with_journal):
            took = await _deliver_round(
                environment, to, [next(messages) for _ in range(MESSAGES_PER_ROUND)], store
            )
        if number >= 2 * WARM_UP_ROUNDS:
            found[with_journal].append(took)
    journaled, unjournaled = _median_times(found[True]), _median_times(found[False])
    return {
        "cpu": 100 * (1 - unjournaled.cpu / journaled.cpu),
        "time": 100 * (1 - unjournaled.time / journaled.time),
        "delivery": journaled.cpu / MESSAGES_PER_ROUND * 1e6,
    }


def _median_times(rounds: list[RoundTimes]) -> RoundTimes:
    return RoundTimes(*map(statistics.median, zip(*rounds, strict=True)))


@contextmanager
def without_journal(*, is_enabled: bool) -> Iterator[None]:
    """Leave out the journal's statements, unless enabled."""

    def no_statements(*_args: Any, **_kwargs: Any) -> Sequence[StatementWithValues]:
        return []

    if is_enabled:
        yield
        return
    with patch.object(journal, "statements_to_record_entries", no_statements):
        yield


async def _deliver_round(
    environment: Environment,
    recipients: list[LocalRecipient],
    messages: list[bytes],
    backend_ids: list[int],
) -> RoundTimes:
    """Deliver messages concurrently, and return the times."""

    async def deliver(raw_message: bytes, recipient: LocalRecipient) -> None:
        await received_messages.store_once_for_recipient(
            environment,
            await received_messages.parse_storable_message(raw_message),
            recipient,
            SENDER,
        )

    used, started_at = _cpu_seconds(backend_ids), time.perf_counter()
    await asyncio.gather(*map(deliver, messages, recipients))
    took = time.perf_counter() - started_at
    return RoundTimes(_cpu_seconds(backend_ids) - used, took)


async def postgres_process_ids(environment: Environment) -> list[int]:
    """Return the processes of PostgreSQL for this database; none for SQLite."""
    if environment.database.dialect == "sqlite":
        return []
    statement = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    async with environment.database.engine.connect() as connection:
        return [row.pid for row in await connection.execute(statement)]


def _cpu_seconds(backend_ids: list[int]) -> float:
    """Return the CPU seconds of this process and of the database processes."""
    return sum(map(cpu_seconds_precise, backend_ids)) + time.process_time()


async def print_shares(rounds: int) -> None:
    """Print the shares as JSON."""
    async with open_environment(read_settings(), migrate=True) as environment:
        print(orjson.dumps(await measure_shares(environment, rounds)).decode())  # noqa: T201 - the output


if __name__ == "__main__":
    uvloop.run(print_shares(int(sys.argv[1])))
