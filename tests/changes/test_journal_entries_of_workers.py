"""Changes by workers, tasks and other writers than mutations are recorded in the journal."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col

from mail.routing.mx_hosts import OutboundSettings
from merganser.server.components.workers import running_workers
from merganser.server.processes.process_roles import WHOLE_SERVER
from merganser.server.shutdown import GracefulShutdown
from models.messages.tables import Message
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to
from tests.support.stores.journal_comparison import assert_journal_matches_rows, new_journal_entries
from tests.support.stores.store_snapshot import snapshot_rows
from tests.support.write_paths import (
    MESSAGES_PER_ACCOUNT,
    WRITE_PATHS,
    WritePathContext,
    update_rows,
)

# They write nothing, or only tables without journal entries.
READ_ONLY_WORKERS = {
    "mail.throttling.list_hosts.resolve_list_hosts_until_worker_stops",
    "resolvers.cluster.platform_follower.follow_platform_forever",
    "resolvers.cluster.process_requests.answer_requests_until_cancelled",
    "resolvers.changes.stream_reader.poll_followed_streams_until_cancelled",
    "resolvers.changes.wakeups.receive_wakeups_forever",
}


@asynccontextmanager
async def run_all_workers(environment: Environment, folder: Path) -> AsyncGenerator[set[str]]:
    """Run all workers of a server and yield their qualified names."""
    shutdown = GracefulShutdown(0.0, start_task=None)
    settings = OutboundSettings()
    async with running_workers(environment, settings, shutdown, folder, WHOLE_SERVER) as workers:
        coroutines: list[Any] = [worker.task.get_coro() for worker in workers if worker.task]
        yield {
            f"{coroutine.cr_frame.f_globals['__name__']}.{coroutine.__name__}"
            for coroutine in coroutines
        }


async def test_every_worker_and_task_kind_has_a_write_path(
    environment: Environment, tmp_path: Path
) -> None:
    async with run_all_workers(environment, tmp_path) as workers:
        assert len(workers) > len(READ_ONLY_WORKERS)
    writers = {write_path.worker for write_path in WRITE_PATHS.values()} - {
        "LMTP",
        "HTTP",
        "the command line",
    }
    assert writers == (workers - READ_ONLY_WORKERS - {"resolvers.admin.tasks.run_worker"}) | set(
        tasks.TASK_RUNNERS
    )


@pytest.fixture
async def stage(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, request: pytest.FixtureRequest
) -> AsyncIterator[WritePathContext]:
    """Two accounts with messages."""
    clock, folder, patch = map(request.getfixturevalue, ("clock", "tmp_path", "monkeypatch"))
    async with AsyncExitStack() as stack:
        for client in (ada, bob):
            for number in range(MESSAGES_PER_ACCOUNT):
                await deliver_to(client, f"Letter {number}")
        yield WritePathContext(ada, bob, root, clock, folder, stack, patch)


@pytest.mark.parametrize("name", WRITE_PATHS)
async def test_journal_has_exactly_the_changes_of_a_write_path(
    name: str, stage: WritePathContext
) -> None:
    write_path, environment = WRITE_PATHS[name], stage.environment
    run = await write_path.prepare(stage)
    before = await snapshot_rows(environment)
    await run()
    after = await snapshot_rows(environment)
    assert (after != before) is write_path.changes_rows
    assert_journal_matches_rows(
        before, after, write_path.silently_deleted_tables, write_path.fully_journaled_tables
    )
    assert bool(new_journal_entries(before, after)) is write_path.is_journaled


async def test_change_without_journal_entry_is_detected(stage: WritePathContext) -> None:
    before = await snapshot_rows(stage.environment)
    await update_rows(stage, Message, {"flagged": True}, col(Message.uid) == 1)
    with pytest.raises(AssertionError, match="messages"):
        assert_journal_matches_rows(before, await snapshot_rows(stage.environment))
