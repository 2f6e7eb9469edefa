"""Measure the log store: CPU of writing a million entries, and latency of filtered pages.

The entries are spread evenly over seven days. On PostgreSQL the CPU time of the database is
also measured.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.progress import Progress
from sqlalchemy import text

from bench.figures.goals import LOG_PAGE_P95, LOG_WRITE_RATE
from bench.figures.measurements import MeasuredValue, percentile
from bench.servers.compared_servers import DatabaseKind, load_postmaster_pid, start_postgres
from bench.servers.merganser_process import cpu_seconds_with_children
from merganser.settings.settings import Settings
from models.logs.entries import LogComponent, LogConditions, LogLevel, NewLogEntry, storable_entry
from models.logs.postgres_store import TABLE_NAME, PostgresLogStore
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogLimits, LogPageKey, LogStore
from models.store.database import Database

TITLE = "operations: log entries"
ENTRY_COUNT = 1_000_000
ENTRIES_PER_BATCH = 2000
PAGE_SIZE = 100
PAGE_REPEATS = 100
PERIOD = timedelta(days=7)
LIMITS_RETENTION, LIMITS_SIZE = timedelta(days=30), 1 << 34  # nothing is deleted
HOST_COUNT, USER_COUNT, DOMAIN_COUNT = 5000, 1000, 50
ENTRIES_PER_MESSAGE = 3  # of one queue id and Message-ID
LEVEL_WEIGHTS = (10, 80, 8, 2)  # percent of DEBUG, INFO, WARNING, ERROR


@dataclass(frozen=True, slots=True)
class OpenLogStore:
    """A log store, and its database and process ID of the database server on PostgreSQL."""

    store: LogStore
    database: Database | None = None
    postmaster_pid: int = 0

    def database_cpu_seconds(self) -> float:
        """Return the CPU seconds of the running processes of the database server; 0 on SQLite."""
        return cpu_seconds_with_children(self.postmaster_pid) if self.postmaster_pid else 0.0

    async def analyze_if_postgres(self) -> None:
        """Update the statistics of PostgreSQL, as its autovacuum does after many writes."""
        if self.database is not None:
            async with self.database.engine.begin() as connection:
                await connection.execute(text(f"ANALYZE {TABLE_NAME}"))


def generate_entries(count: int, end: datetime) -> Iterator[NewLogEntry]:
    """Yield entries with ascending times, the same ones each time."""
    dice = random.Random(1)  # noqa: S311 - no secret
    components, levels = list(LogComponent), list(LogLevel)
    for number in range(count):
        user_id, message_number = number % USER_COUNT, number // ENTRIES_PER_MESSAGE
        host = f"host{dice.randrange(HOST_COUNT)}.example.com"
        yield NewLogEntry(
            end - PERIOD * (1 - number / count),
            dice.choice(components),
            dice.choices(levels, LEVEL_WEIGHTS)[0],
            "mail.outbound.worker",
            f"Message for user{user_id}@{host} was delivered",
            {
                "address": f"user{user_id}@example.org",
                "reply": "250 2.0.0 OK queued",
                "ms": number % 100,
            },
            user_id=user_id,
            domain_id=number % DOMAIN_COUNT,
            queue_id=f"{message_number:020x}",
            message_id=f"<{message_number}@bench.example>",
            correlation_id=f"request-{number}",
        )


def page_conditions(count: int, end: datetime) -> dict[str, LogConditions]:
    """Return the conditions of each measured page by name."""
    middle, message_number = count // 2, count // 2 // ENTRIES_PER_MESSAGE
    since, before = end - timedelta(days=6), end - timedelta(days=3)
    return {
        "no filter": LogConditions(),
        "component": LogConditions(components=(LogComponent.SPAM,)),
        "level": LogConditions(min_level=LogLevel.ERROR),
        "time": LogConditions(since=since, before=before),
        "text, frequent word": LogConditions(words=("delivered",)),
        "text, rare word": LogConditions(words=("host77",)),
        "text, absent word": LogConditions(words=("nothing",)),
        "user": LogConditions(user_id=7),
        "domain": LogConditions(domain_ids=(7,)),
        "queue ID": LogConditions(queue_id=f"{message_number:020x}"),
        "Message-ID": LogConditions(message_id=f"<{message_number}@bench.example>"),
        "correlation ID": LogConditions(correlation_id=f"request-{middle}"),
        "component, level, time and frequent word": LogConditions(
            components=(LogComponent.SPAM,),
            min_level=LogLevel.WARNING,
            since=since,
            before=before,
            words=("delivered",),
        ),
        "component, level, time and rare word": LogConditions(
            components=(LogComponent.SPAM,),
            min_level=LogLevel.WARNING,
            since=since,
            before=before,
            words=("host77",),
        ),
    }


async def measure_log_entries(
    database_kind: DatabaseKind, folder: Path, entry_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the entries written per CPU second, and the latency of pages with each filter."""
    end = datetime.now(UTC)
    conditions = page_conditions(entry_count, end)
    task = progress.add_task(TITLE, total=entry_count)
    facts = list[MeasuredValue]()
    async with _open_log_store(database_kind, folder) as log_store:
        facts += await asyncio.to_thread(
            write_entries_and_measure,
            log_store,
            entry_count,
            end,
            lambda count: progress.advance(task, count),
        )
        await log_store.analyze_if_postgres()
        for name, condition in conditions.items():
            row_count, latencies = await _time_pages(log_store.store, condition)
            page_name = f"{LOG_PAGE_P95.format(entry_count)}, {name}"
            facts.append(MeasuredValue(page_name, percentile(latencies, 0.95) * 1e3, "ms"))
            facts.append(MeasuredValue("… p50", percentile(latencies, 0.5) * 1e3, "ms"))
            facts.append(MeasuredValue("… entries in the page", row_count, ""))
    progress.remove_task(task)
    return facts


def write_entries_and_measure(
    log_store: OpenLogStore, entry_count: int, end: datetime, advance: Callable[[int], None]
) -> list[MeasuredValue]:
    """Write entries in batches, and return how many are written per CPU second.

    The CPU time of this thread counts: cleaning, tokens, and the work of the store. The second
    value also includes the CPU time of the database server, if there is one.
    """
    entries = generate_entries(entry_count, end)
    limits = LogLimits(LIMITS_RETENTION, LIMITS_SIZE, end)
    store, database_before, seconds = log_store.store, log_store.database_cpu_seconds(), 0.0
    for start in range(0, entry_count, ENTRIES_PER_BATCH):
        size = min(ENTRIES_PER_BATCH, entry_count - start)
        batch = [next(entries) for _ in range(size)]
        cpu_before = time.thread_time()
        store.write_entries_unless_full([storable_entry(entry) for entry in batch], limits)
        seconds += time.thread_time() - cpu_before
        advance(size)
    facts = [MeasuredValue(LOG_WRITE_RATE.format(entry_count), entry_count / seconds, "")]
    if log_store.database is not None:
        seconds += log_store.database_cpu_seconds() - database_before
        name = f"{LOG_WRITE_RATE.format(entry_count)}, with the CPU of the database"
        facts.append(MeasuredValue(name, entry_count / seconds, ""))
    store.close_writer()
    return facts


async def _time_pages(store: LogStore, conditions: LogConditions) -> tuple[int, list[float]]:
    """Return the number of entries in the newest page, and the seconds of each read of it."""
    seconds, row_count = list[float](), 0
    for _ in range(PAGE_REPEATS):
        started_at = time.perf_counter()
        rows = await store.read_rows(conditions, LogPageKey(PAGE_SIZE + 1))
        seconds.append(time.perf_counter() - started_at)
        row_count = min(len(rows), PAGE_SIZE)
    return row_count, seconds


@asynccontextmanager
async def _open_log_store(
    database_kind: DatabaseKind, folder: Path
) -> AsyncGenerator[OpenLogStore]:
    """Open an empty log store, and close it at the end."""
    if database_kind is DatabaseKind.SQLITE:
        sqlite_store = SqliteLogStore(folder / "logs.db", folder / "merganser.db")
        yield OpenLogStore(sqlite_store)
        await sqlite_store.close()
        return
    settings = Settings(data=folder, database_url=start_postgres(folder))
    database = Database(settings.database_url)
    try:
        store = PostgresLogStore(settings.database_url, database)
        yield OpenLogStore(store, database, await load_postmaster_pid(database))
    finally:
        await database.close()
