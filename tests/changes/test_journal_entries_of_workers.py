"""What is not asked for by a mutation is told by the journal all the same: on every road."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col

from mail.routing.mx_hosts import OutboundSettings
from merganser.server import lifecycle
from merganser.server.processes.process_roles import WHOLE_SERVER
from merganser.server.shutdown import GracefulShutdown
from models.messages.tables import Message
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import Client, receive
from tests.support.sample_mutations.journal_write_paths import LETTERS, ROADS, Stage, change
from tests.support.stores.journal_comparison import assert_journal_matches_rows, new_journal_entries
from tests.support.stores.store_snapshot import everything

READS = {
    "resolvers.changes.stream_reader.poll_followed_streams",
    "resolvers.changes.wakeups.receive_wakeups",
    "resolvers.admin.settings.follow_stored_settings",
}


@asynccontextmanager
async def running(world: Environment, folder: Path) -> AsyncGenerator[set[str]]:
    """All workers of a server, by their names."""
    ending = GracefulShutdown(0.0, start_task=None)
    async with lifecycle._running_workers(world, OutboundSettings(), ending, folder, WHOLE_SERVER):  # noqa: SLF001
        works: list[Any] = [task.get_coro() for task in ending.worker_tasks]
        yield {f"{one.cr_frame.f_globals['__name__']}.{one.__name__}" for one in works}


async def test_every_worker_and_every_kind_of_task_has_its_road(
    world: Environment, tmp_path: Path
) -> None:
    async with running(world, tmp_path) as workers:
        assert len(workers) > len(READS)
    by = {road.by for road in ROADS.values()} - {"LMTP", "HTTP", "the command line"}
    assert by == (workers - READS - {"resolvers.admin.tasks.run_worker"}) | set(tasks.TASK_KINDS)


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
    assert_journal_matches_rows(before, after, road.goes, road.whole)
    assert bool(new_journal_entries(before, after)) is road.told


async def test_a_change_that_is_not_told_is_found(stage: Stage) -> None:
    before = await everything(stage.world)
    await change(stage, Message, {"flagged": True}, col(Message.uid) == 1)
    with pytest.raises(AssertionError, match="messages"):
        assert_journal_matches_rows(before, await everything(stage.world))
