"""A task that kills its server, or that a dead server left behind, holds up no other task."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.archives.archive_writer import ExportFormat
from merganser.server.environment_factory import user_context
from models.admin.tasks import Task, TaskState
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_changes import BulkRequest
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer import exports
from resolvers.transfer.exports import NewExport
from tests.support.servers.forked_process import ForkedProcess, Streams
from tests.support.servers.merganser_server import START, Server
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

LIMIT = 60.0  # seconds until a task has ended, on a busy machine
DEADLY = {"MERGANSER_FAULT": "exported:1"}  # the server kills itself when it exports


@pytest.fixture(params=store_fixtures.STORES)
def stopped(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    """A server with users that does not run."""
    store = ""
    if request.param != "sqlite":
        store = create_database(request.getfixturevalue("postgres"), "tasks")
    server = Server(tmp_path, store)
    server.make("ada", "bob")
    return server


@asynccontextmanager
async def accounts(server: Server) -> AsyncGenerator[tuple[Environment, dict[str, int]]]:
    async with server.world() as world:
        rows = await world.database.read(select(col(User.id), col(User.username)))
        yield world, {row.username: row.id for row in rows}


async def queue_export(world: Environment, user_id: int) -> None:
    await exports.create_export(user_context(world, user_id), NewExport(user_id, ExportFormat.MBOX))


async def queue_flagging(world: Environment, user_id: int) -> None:
    order = BulkRequest(
        MessageSelector(conditions=MessageConditions()),
        FlagChanges.from_flag_names({"flagged": True}),
        always_as_task=True,
    )
    await bulk_changes.apply_bulk_request(user_context(world, user_id), order)


async def states(world: Environment) -> dict[tuple[int, str], TaskState]:
    columns = col(Task.user_id), col(Task.kind), col(Task.state)
    rows = await world.database.read(select(*columns))
    return {(row.user_id, row.kind): TaskState(row.state) for row in rows}


def killed_by_its_task(server: Server) -> None:
    """Run the server until the export kills it."""
    env = {**server.env, **DEADLY}
    process = ForkedProcess(["serve"], env, Streams(server.folder / "log"))
    try:
        assert process.wait(START) == -signal.SIGKILL, server.log
    finally:
        process.kill()


async def test_a_task_that_kills_its_server_lets_the_others_go_first(stopped: Server) -> None:
    """Each life of the server works on what no server has died of, before it dies."""
    async with accounts(stopped) as (world, users):
        await queue_export(world, users["ada"])
        for name in ("ada", "bob"):
            await queue_flagging(world, users[name])
        await asyncio.to_thread(killed_by_its_task, stopped)
        export = users["ada"], exports.TASK_KIND
        flaggings = [(users[name], "MESSAGE_UPDATE") for name in ("ada", "bob")]
        assert (await states(world))[export] is TaskState.RUNNING
        await asyncio.to_thread(killed_by_its_task, stopped)
        now = await states(world)
        assert [now[each] for each in flaggings] == [TaskState.SUCCEEDED] * 2
        assert now[export] is TaskState.RUNNING

        await asyncio.to_thread(stopped.start)  # it is well again
        try:
            await _until_ended(world, export)
            assert (await states(world))[export] is TaskState.SUCCEEDED
        finally:
            await asyncio.to_thread(stopped.stop)


async def _until_ended(world: Environment, key: tuple[int, str]) -> None:
    async with asyncio.timeout(LIMIT):
        while (await states(world))[key] in (TaskState.QUEUED, TaskState.RUNNING):  # noqa: ASYNC110 - rows
            await asyncio.sleep(0.05)
