"""What is not asked for by a mutation is told by the journal all the same: on every road."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col

from mail.routing.mx_hosts import Route
from merganser.server import lifecycle
from merganser.server.processes.process_roles import ALONE
from merganser.server.shutdown import Ending
from models.messages.tables import Message
from models.runtime.environment import World
from resolvers.admin import tasks
from tests.conftest import Client, receive
from tests.schema.test_every_mutation_and_query import PARTS, TOLD
from tests.support.sample_mutations.journal_write_paths import LETTERS, ROADS, Stage, change
from tests.support.stores.store_snapshot import Rows, changed, everything

READS = {
    "resolvers.changes.stream_reader.watch",
    "resolvers.changes.wakeups.hear",
    "resolvers.admin.settings.follow",
}
COUNTED = {  # as mail comes in, and goes on
    "users": {"received", "received_until", "storage_level"},
    "addresses": {"forwarded", "forwarded_until"},
}


def new(before: Rows, after: Rows) -> list[dict[str, Any]]:
    """The entries of the journal that came between."""
    return [row for key, row in after["changes"].items() if key not in before["changes"]]


def compared(
    before: Rows, after: Rows, goes: Collection[str] = (), whole: Collection[str] = ()
) -> None:
    """The journal tells exactly what is otherwise, but for rows of some that end in silence.

    Of `whole` tables all columns are told.
    """
    entries = new(before, after)
    for table, (kind, usual) in TOLD.items():
        ignored = set() if table in whole else usual | COUNTED.get(table, set())
        told = {key for row in entries if row["kind"].startswith(kind) for key in row["ids"]}
        parts = [changed(before, after, part, set()) for part in PARTS.get(table, ())]
        differs = changed(before, after, table, ignored).union(*parts)
        if table in goes:
            gone = {key[0] for key in before[table].keys() - after[table].keys()}
            assert told <= differs, table
            differs -= gone - told
        assert told == differs, table
    for (stream,), row in after["streams"].items():
        since = before["streams"].get((stream,), {"last": 0})["last"]
        counted = sum(len(one["ids"]) for one in entries if one["stream_id"] == stream)
        assert row["last"] - since == counted, stream


@asynccontextmanager
async def running(world: World, folder: Path) -> AsyncGenerator[set[str]]:
    """All workers of a server, by their names."""
    ending = Ending(0.0, starting=None)
    async with lifecycle._workers(world, Route(), ending, folder, ALONE):  # noqa: SLF001
        works: list[Any] = [task.get_coro() for task in ending.workers]
        yield {f"{one.cr_frame.f_globals['__name__']}.{one.__name__}" for one in works}


async def test_every_worker_and_every_kind_of_task_has_its_road(
    world: World, tmp_path: Path
) -> None:
    async with running(world, tmp_path) as workers:
        assert len(workers) > len(READS)
    by = {road.by for road in ROADS.values()} - {"LMTP", "HTTP", "the command line"}
    assert by == (workers - READS - {"resolvers.admin.tasks.run"}) | set(tasks.KINDS)


@pytest.fixture
async def stage(
    ada: Client, bob: Client, root: Client, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    """Two accounts with letters."""
    clock, folder, patch = map(request.getfixturevalue, ("clock", "tmp_path", "monkeypatch"))
    async with AsyncExitStack() as stack:
        for client in (ada, bob):
            for number in range(LETTERS):
                await receive(client, f"Letter {number}")
        yield Stage(ada, bob, root, clock, folder, stack, patch)


@pytest.mark.parametrize("name", ROADS)
async def test_the_journal_tells_exactly_what_became_otherwise_on_a_road(
    name: str, stage: Stage
) -> None:
    road, world = ROADS[name], stage.world
    work = await road.prepare(stage)
    before = await everything(world)
    await work()
    after = await everything(world)
    assert (after != before) is road.writes
    compared(before, after, road.goes, road.whole)
    assert bool(new(before, after)) is road.told


async def test_a_change_that_is_not_told_is_found(stage: Stage) -> None:
    before = await everything(stage.world)
    await change(stage, Message, {"flagged": True}, col(Message.uid) == 1)
    with pytest.raises(AssertionError, match="messages"):
        compared(before, await everything(stage.world))
