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

from bench.figures.goals import CLAIM
from bench.figures.measurements import Fact, percentile
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import Kind, postgres
from mail.envelope.delivery_jobs import Pace
from mail.mime.header_encoding import Named
from mail.queue import recipient_leases
from mail.queue.destination_order import LAST, Room, Round
from merganser.server.environment_factory import on_behalf, opened, owner
from merganser.server.http_server import COLLECT
from merganser.settings.settings import Settings
from models.queue.tables import MIDDLE, Delivery, DeliveryState
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask
from models.submission.tables import Submission, SubmissionState
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import OLDEST, EntryWhere, QueueName
from resolvers.submission import create as submission_create
from resolvers.submission.create import Outgoing

NAME = "queue: many waiting"
MANY = 100_000
LOOKS = 300  # per shape
WORKERS = 4
TOGETHER = 5000
PACE = Pace()
BIG = "big.example"

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Shape:
    """The spread of recipients over destinations, and whether the largest is busy."""

    name: str
    domains: int
    big: float = 0.0  # share of one destination
    busy: bool = False  # it has its full number of connections
    due: timedelta = timedelta(0)  # relative to now, the same for all
    workers: int = 1


SHAPES = (
    Shape("1,000 destinations", 1000),
    Shape("one busy destination has 99 %", 100, 0.99, busy=True),
    Shape("one destination has 99 %", 100, 0.99),
    Shape("each a destination of its own", MANY),
    Shape("all fall due at once", 1000, due=-timedelta(seconds=1)),
    Shape(f"1,000 destinations, {WORKERS} workers", 1000, workers=WORKERS),
)


async def measured(kind: Kind, folder: Path, many: int, bar: Progress) -> list[Fact]:
    """Return the times of claims for each backlog shape, and of pages of the queue."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    data = folder / "queue"
    settings = Settings(data=data, store=url) if url else Settings(data=data)
    task = bar.add_task(NAME, total=len(SHAPES))
    facts = []
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        ctx = on_behalf(world, user.id)
        outgoing = Outgoing(
            to=[Named("somebody@example.net")],
            subject="Waiting",
            text="Hello.",
            send_time=world.now() + timedelta(days=300),
        )
        sent = await submission_create.send(ctx, outgoing)
        for shape in SHAPES:
            await fill(world, sent.submission, shape, many)
            with as_served():
                looks, own = await claimed(world, shape)
            name = f"{CLAIM.format(many)}, {shape.name}"
            facts.append(Fact(name, percentile(looks, 0.99) * 1e3, "ms"))
            facts.append(Fact("… p50", percentile(looks, 0.5) * 1e3, "ms"))
            facts.append(Fact("… its own statements, p99", percentile(own, 0.99) * 1e3, "ms"))
            bar.advance(task)
        facts += await listed(world, many)
    bar.remove_task(task)
    return facts


async def fill(world: World, like: Any, shape: Shape, many: int) -> None:
    """Replace the queue by this many recipients, each of a message of its own."""
    (model,) = await world.database.read(
        select(*picked(Submission)).where(col(Submission.id) == like.id)
    )
    async with world.write(model.user_id) as session:
        connection = await session.connection()
        await connection.execute(delete(Submission).where(col(Submission.id) != model.id))
    for start in range(0, many, TOGETHER):
        rows = list(_rows(world, model, shape, range(start, min(start + TOGETHER, many))))
        async with world.write(model.user_id) as session:
            connection = await session.connection()
            await connection.execute(insert(Submission), [message for message, _ in rows])
            await connection.execute(insert(Delivery), [recipient for _, recipient in rows])


def _rows(
    world: World, model: Picked, shape: Shape, numbers: range
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    now = world.now()
    every = round(1 / (1 - shape.big)) if shape.big else 1
    for number in numbers:
        key = world.key()
        alone = number % every == 0
        domain = f"d{number // every % shape.domains:06}.example" if alone else BIG
        message = {
            **model._asdict(),
            "id": key,
            "queue_id": world.random(10).hex(),
            "state": SubmissionState.QUEUED,
            "message_id": None,
            "send_time": None,
            "created_at": now,
        }
        yield (
            message,
            {
                "id": world.key(),
                "user_id": model.user_id,
                "submission_id": key,
                "recipient": f"n{number}@{domain}",
                "domain": domain,
                "state": DeliveryState.DEFERRED if shape.due else DeliveryState.PENDING,
                "attempts": 1 if shape.due else 0,
                "next_at": now + shape.due,
                "turn_at": None if shape.due else now,
                "rank": (0, MIDDLE, MIDDLE, LAST)[number % 4],
                "created_at": now,
                "expires_at": now + timedelta(days=5),
            },
        )


@contextmanager
def as_served() -> Iterator[None]:
    """Collect garbage as in the server, without the objects made to fill the queue."""
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class Watched(World):
    """An environment that times each transaction, without its waits for locks and the disk."""

    own: list[float] = field(default_factory=list)

    async def apply(self, work: Callable[[Turn], Outcome], *streams: int) -> Outcome:
        """Run a transaction as the base class does, and record its time."""

        def timed(turn: Turn) -> Outcome:
            began = time.perf_counter()
            outcome = work(turn)
            self.own.append(time.perf_counter() - began)
            return outcome

        return await World.apply(self, timed, *streams)


async def claimed(world: World, shape: Shape) -> tuple[list[float], list[float]]:
    """Return the seconds of each claim, and those of its statements alone."""
    took: list[float] = []
    watched = Watched(**{f.name: getattr(world, f.name) for f in fields(world) if f.init})
    busy = [BIG] if shape.busy else []

    async def worker() -> None:
        round_, room = Round(), Room(PACE.claim, PACE.at_once, PACE.at_once, busy)
        for _ in range(LOOKS // shape.workers):
            began = time.perf_counter()
            await recipient_leases.claim(watched, PACE, room, round_)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(worker() for _ in range(shape.workers)))
    return took, watched.own


async def listed(world: World, many: int) -> list[Fact]:
    """Time a page of the whole queue and of each queue name, for an administrator."""
    ctx, facts = owner(world), []
    wheres = {"a page of the queue": EntryWhere()} | {
        f"… of what is {name.value}": EntryWhere(name) for name in QueueName
    }
    for name, where in wheres.items():
        took = []
        for _ in range(20):
            began = time.perf_counter()
            await queue_loaders.page(ctx, where, Ask(OLDEST, 50), {"queue_id", "envelope_from"})
            took.append(time.perf_counter() - began)
        facts.append(Fact(f"{name}, {many:,} waiting, p50", percentile(took, 0.5) * 1e3, "ms"))
    return facts
