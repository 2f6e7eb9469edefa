"""Measure claims in a queue of 100,000 waiting recipients, with busy destinations.

The time includes the wait for the write lock, the statements and the write to disk. Workers of
one process wait for each other, because SQLite has one writer. Therefore the time of the
statements alone is also reported.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress
from sqlalchemy import delete, insert, select
from sqlmodel import col

from bench.figures.goals import CLAIM_P99
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.compared_servers import DatabaseKind, start_database
from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from mail.queue.destination_order import LAST_RANK, ClaimCapacity, LineCursor
from merganser.server.environment_factory import open_environment, root_context, user_context
from merganser.server.process_memory import GC_THRESHOLDS
from merganser.settings.settings import Settings
from models.queue.tables import NORMAL_RANK, DeliveryState, QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import PageRequest
from models.submission.tables import Submission, SubmissionState
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueEntryConditions, QueueName
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest

TITLE = "queue claims"
RECIPIENT_COUNT = 100_000
CLAIM_COUNT = 300  # per shape
WORKER_COUNT = 4
ROWS_PER_TRANSACTION = 5000
SENDING_PACE = QueueLimits()
BIG_DOMAIN = "big.example"

TransactionResult = TypeVar("TransactionResult")


@dataclass(frozen=True, slots=True)
class BacklogShape:
    """The spread of recipients over destinations, and whether the largest is busy."""

    name: str
    domain_count: int
    big_domain_share: float = 0.0  # share of one destination
    is_big_domain_busy: bool = False  # it has its full number of connections
    due_after: timedelta = timedelta(0)  # relative to now, the same for all
    worker_count: int = 1


BACKLOG_SHAPES = (
    BacklogShape("1,000 destinations", 1000),
    BacklogShape("99 % for one busy destination", 100, 0.99, is_big_domain_busy=True),
    BacklogShape("99 % for one destination", 100, 0.99),
    BacklogShape("one destination per recipient", RECIPIENT_COUNT),
    BacklogShape("all due at the same time", 1000, due_after=-timedelta(seconds=1)),
    BacklogShape(f"1,000 destinations, {WORKER_COUNT} workers", 1000, worker_count=WORKER_COUNT),
)


async def measure_claims(
    database_kind: DatabaseKind, folder: Path, recipient_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the times of claims for each backlog shape, and of pages of the queue."""
    url = start_database(database_kind, folder)
    data = folder / "queue"
    settings = Settings(data=data, database_url=url) if url else Settings(data=data)
    task = progress.add_task(TITLE, total=len(BACKLOG_SHAPES))
    facts = []
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        ctx = user_context(environment, user.id)
        outgoing = SendRequest(
            to=[NamedAddress("somebody@example.net")],
            subject="Waiting",
            text="Hello.",
            send_at=environment.now() + timedelta(days=300),
        )
        sent_message = await submission_create.compose_and_queue_message(ctx, outgoing)
        for shape in BACKLOG_SHAPES:
            await fill_queue(environment, sent_message.submission, shape, recipient_count)
            with gc_as_in_server():
                looks, own = await time_claims(environment, shape)
            name = f"{CLAIM_P99.format(recipient_count)}, {shape.name}"
            facts.append(MeasuredValue(name, percentile(looks, 0.99) * 1e3, "ms"))
            facts.append(MeasuredValue("… p50", percentile(looks, 0.5) * 1e3, "ms"))
            facts.append(
                MeasuredValue(
                    "… without waiting for locks and the disk, p99",
                    percentile(own, 0.99) * 1e3,
                    "ms",
                )
            )
            progress.advance(task)
        facts += await time_queue_pages(environment, recipient_count)
    progress.remove_task(task)
    return facts


async def fill_queue(
    environment: Environment, model_submission: Any, shape: BacklogShape, recipient_count: int
) -> None:
    """Replace the queue by this many recipients, each of a message of its own."""
    (model,) = await environment.database.read(
        select(*select_columns(Submission)).where(col(Submission.id) == model_submission.id)
    )
    async with environment.write_session(model.user_id) as session:
        connection = await session.connection()
        await connection.execute(delete(Submission).where(col(Submission.id) != model.id))
    for start in range(0, recipient_count, ROWS_PER_TRANSACTION):
        rows = list(
            _submission_and_delivery_rows(
                environment,
                model,
                shape,
                range(start, min(start + ROWS_PER_TRANSACTION, recipient_count)),
            )
        )
        async with environment.write_session(model.user_id) as session:
            connection = await session.connection()
            await connection.execute(insert(Submission), [message for message, _ in rows])
            await connection.execute(insert(QueueEntry), [recipient for _, recipient in rows])


def _submission_and_delivery_rows(
    environment: Environment, model: ColumnRow, shape: BacklogShape, numbers: range
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    now = environment.now()
    every = round(1 / (1 - shape.big_domain_share)) if shape.big_domain_share else 1
    for number in numbers:
        key = environment.new_id()
        alone = number % every == 0
        domain = f"d{number // every % shape.domain_count:06}.example" if alone else BIG_DOMAIN
        message = {
            **model._asdict(),
            "id": key,
            "queue_id": environment.random_bytes(10).hex(),
            "state": SubmissionState.QUEUED,
            "message_id": None,
            "send_at": None,
            "created_at": now,
        }
        yield (
            message,
            {
                "id": environment.new_id(),
                "user_id": model.user_id,
                "submission_id": key,
                "recipient": f"n{number}@{domain}",
                "domain": domain,
                "state": DeliveryState.DEFERRED if shape.due_after else DeliveryState.PENDING,
                "attempts": 1 if shape.due_after else 0,
                "next_at": now + shape.due_after,
                "ready_at": None if shape.due_after else now,
                "rank": (0, NORMAL_RANK, NORMAL_RANK, LAST_RANK)[number % 4],
                "created_at": now,
                "expires_at": now + timedelta(days=5),
            },
        )


@contextmanager
def gc_as_in_server() -> Iterator[None]:
    """Collect garbage as in the server, without the objects made to fill the queue.

    They stay frozen: `gc.unfreeze` would also release what a process of tests has frozen, and each
    full collection would scan all modules and tests again.
    """
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@dataclass(frozen=True, slots=True)
class TimedEnvironment(Environment):
    """An environment that times each transaction, without its waits for locks and the disk."""

    transaction_seconds: list[float] = field(default_factory=list)

    async def run_transaction(
        self, work: Callable[[DatabaseTransaction], TransactionResult], *stream_ids: int
    ) -> TransactionResult:
        """Run a transaction as the base class does, and record its time."""

        def run_timed(transaction: DatabaseTransaction) -> TransactionResult:
            started_at = time.perf_counter()
            outcome = work(transaction)
            self.transaction_seconds.append(time.perf_counter() - started_at)
            return outcome

        return await Environment.run_transaction(self, run_timed, *stream_ids)


async def time_claims(
    environment: Environment, shape: BacklogShape
) -> tuple[list[float], list[float]]:
    """Return the seconds of each claim, and those of its statements alone."""
    took: list[float] = []
    watched = TimedEnvironment(
        **{f.name: getattr(environment, f.name) for f in fields(environment) if f.init}
    )
    busy = [BIG_DOMAIN] if shape.is_big_domain_busy else []

    async def worker() -> None:
        round_ = LineCursor()
        room = ClaimCapacity(
            SENDING_PACE.claim_size,
            SENDING_PACE.max_destinations,
            SENDING_PACE.max_destinations,
            busy,
        )
        for _ in range(CLAIM_COUNT // shape.worker_count):
            started_at = time.perf_counter()
            await recipient_leases.release_held_and_claim_due_jobs(
                watched, SENDING_PACE, room, round_
            )
            took.append(time.perf_counter() - started_at)

    await asyncio.gather(*(worker() for _ in range(shape.worker_count)))
    return took, watched.transaction_seconds


async def time_queue_pages(environment: Environment, recipient_count: int) -> list[MeasuredValue]:
    """Time a page of the whole queue and of each queue name, for an administrator."""
    ctx, facts = root_context(environment), []
    wheres = {"page of the queue": QueueEntryConditions()} | {
        f"page of the queue {name.value}": QueueEntryConditions(name) for name in QueueName
    }
    for name, conditions in wheres.items():
        took = []
        for _ in range(20):
            started_at = time.perf_counter()
            await queue_loaders.read_visible_waiting_entry_page(
                ctx, conditions, PageRequest("queue", 50), {"queue_id", "envelope_from"}
            )
            took.append(time.perf_counter() - started_at)
        facts.append(
            MeasuredValue(
                f"{name}, {recipient_count:,} waiting recipients, p50",
                percentile(took, 0.5) * 1e3,
                "ms",
            )
        )
    return facts
