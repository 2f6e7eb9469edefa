"""Measure how fast a client reads a journal of a million changes that it has missed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from sqlalchemy import insert, select, text, update
from sqlmodel import col

from bench.figures.goals import READ
from bench.figures.measurements import Fact
from bench.load.http_client import Asker, Target, asking, post
from bench.load.message_generator import Writer
from bench.load.sample_account import READER, make_user
from bench.scenarios.live_subscriptions import BEHIND
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, fine_cpu, running, settled
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.server.environment_factory import on_behalf, opened, owner
from merganser.settings.settings import Settings
from models.events.journal import Change, ChangeKind, Stream
from models.runtime.environment import World
from models.store.columns import Picked, picked
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_changes import Order
from resolvers.messages.bulk.row_changes import Changes
from resolvers.messages.filters.filter_conditions import Selection

NAME = "live: far behind"
KEPT = 2_000_000
TOGETHER = 5000  # must be even
LIKE = (ChangeKind.MESSAGE_ADDED, ChangeKind.MESSAGE_UPDATED)

Step = Callable[[int], None]  # called with the number of new changes


async def measured(kind: Kind, folder: Path, many: int, bar: Progress) -> list[Fact]:
    """Return how many changes are read per second, page by page, from the first to the last."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "behind", url, more={"MERGANSER_JOURNAL_EVENTS": str(KEPT)})
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task(f"{many:,} changes", total=2 * many)

    def done(more: int) -> None:
        bar.advance(task, more)

    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
        last = await fill(world, user.id, many, done)
    async with running(server.start) as pid:
        target = Target(server.http, pid, secret)
        await settled(pid)
        (asker,) = await asking(target, 1)
        used, began = fine_cpu(pid), time.perf_counter()
        await read(asker, target, user.id, last, done)
        took, spent = time.perf_counter() - began, fine_cpu(pid) - used
        asker.close()
    bar.remove_task(task)
    return [
        Fact(f"{last:,} {READ}", last / took, ""),
        Fact("the same, in a second of CPU", last / spent, ""),
    ]


async def fill(world: World, user_id: int, many: int, done: Step) -> int:
    """Insert changes into an account's journal, and return the number of the newest."""
    models, last = await _models(world, user_id)
    for start in range(0, many, TOGETHER):
        numbers = range(start, min(start + TOGETHER, many))
        rows = _rows(world, models, numbers, last)
        last += len(numbers)
        ahead = update(Stream).where(col(Stream.id) == user_id).values(last=last)
        async with world.write(user_id) as session:
            connection = await session.connection()
            await connection.execute(insert(Change), rows)
            await connection.execute(ahead)
        done(len(numbers))
    async with world.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return last


async def _models(world: World, user_id: int) -> tuple[list[dict[str, Any]], int]:
    """Create a message and flag it. Returns these journal rows and the last position."""
    letter, to = (
        await received_messages.read(Writer().letter(0)),
        await address_resolution.recipient(world, READER),
    )
    placed = await received_messages.receive(world, letter, to, "bob@example.com")
    flag = Order(Selection([placed.message_id]), Changes.of({"flagged": True}))
    await bulk_changes.carry_out(on_behalf(world, user_id), flag)
    asked = select(*picked(Change)).where(col(Change.stream_id) == user_id)
    rows = await world.database.read(asked.order_by(col(Change.last)))
    found = {row.kind: _plain(row) for row in rows}
    return [found[kind] for kind in LIKE], rows[-1].last


def _plain(row: Picked) -> dict[str, Any]:
    return dict(zip(row._fields, row, strict=True))


def _rows(
    world: World, models: Sequence[dict[str, Any]], numbers: range, last: int
) -> list[dict[str, Any]]:
    """Return rows of changes after `last_position`: each message is added, then flagged."""
    rows, key = [], 0
    for nth, number in enumerate(numbers):
        like = models[number % len(models)]
        if number % len(models) == 0:
            key = world.key()
        position = last + nth + 1
        facts = {**like["facts"], "modseq": position, "uid": [2 + number // len(models)]}
        row = {"last": position, "at": world.now(), "ids": [key], "facts": facts}
        rows.append({**like, **row})
    return rows


async def read(asker: Asker, target: Target, user_id: int, last: int, done: Step) -> None:
    """Read the journal from its first change on. Raises RuntimeError if a change is missing."""
    at, number, more = f"1.{user_id}.0", 0, True
    while more:
        request = post(target, "/graphql", {"query": BEHIND, "variables": {"after": at}})
        data, _ = await asker.ask(request)
        page = data["changes"]
        at, more, number = page["cursor"], page["hasMore"], number + len(page["events"])
        if at != f"1.{user_id}.{number}":
            raise RuntimeError(f"{number} changes were read, and the cursor is {at}")
        done(len(page["events"]))
    if number != last:
        raise RuntimeError(f"{number} changes were read of {last}")
