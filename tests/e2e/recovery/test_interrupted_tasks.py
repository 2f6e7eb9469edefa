"""Tests that a task that kills its server, or has a dead server, does not block other tasks."""

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
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer import exports
from resolvers.transfer.exports import NewExport
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams
from tests.support.servers.merganser_server import START_TIMEOUT, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

TASK_LIMIT = 60.0  # seconds until a task has ended, on a busy machine
EXPORT_FAULT = {"MERGANSER_FAULT": "exported:1"}  # the server kills itself during an export


@pytest.fixture(params=store_fixtures.STORES)
def stopped_server(request: pytest.FixtureRequest, tmp_path: Path) -> MerganserProcess:
    """A server with users that does not run."""
    store = ""
    if request.param != "sqlite":
        store = create_migrated_database(request.getfixturevalue("postgres"), "tasks")
    server = MerganserProcess(tmp_path, store)
    server.create_users("ada", "bob")
    return server


@asynccontextmanager
async def open_accounts(
    server: MerganserProcess,
) -> AsyncGenerator[tuple[Environment, dict[str, int]]]:
    async with server.environment() as environment:
        rows = await environment.database.read(select(col(User.id), col(User.username)))
        yield environment, {row.username: row.id for row in rows}


async def queue_export(environment: Environment, user_id: int) -> None:
    await exports.create_and_queue_export(
        user_context(environment, user_id), NewExport(user_id, ExportFormat.MBOX)
    )


async def queue_flagging(environment: Environment, user_id: int) -> None:
    bulk_request = BulkRequest(
        MessageSelector(conditions=MessageConditions()),
        FlagChanges.from_flag_names({"flagged": True}),
        always_as_task=True,
    )
    await bulk_changes.apply_or_queue_bulk_request(user_context(environment, user_id), bulk_request)


async def task_states(environment: Environment) -> dict[tuple[int, str], TaskState]:
    columns = col(Task.user_id), col(Task.kind), col(Task.state)
    rows = await environment.database.read(select(*columns))
    return {(row.user_id, row.kind): TaskState(row.state) for row in rows}


def run_until_killed(server: MerganserProcess) -> None:
    """Run the server until the export kills it."""
    env = {**server.process_env, **EXPORT_FAULT}
    process = ForkedProcess(["serve"], env, ProcessStreams(server.folder / "log"))
    try:
        assert process.wait(START_TIMEOUT) == -signal.SIGKILL, server.log
    finally:
        process.kill()


async def test_task_that_kills_server_runs_after_other_tasks(
    stopped_server: MerganserProcess,
) -> None:
    """Each start of the server works first on tasks that have not killed a server."""
    async with open_accounts(stopped_server) as (environment, users):
        await queue_export(environment, users["ada"])
        for name in ("ada", "bob"):
            await queue_flagging(environment, users[name])
        await asyncio.to_thread(run_until_killed, stopped_server)
        export = users["ada"], exports.TASK_KIND
        flag_tasks = [(users[name], "MESSAGE_UPDATE") for name in ("ada", "bob")]
        assert (await task_states(environment))[export] is TaskState.RUNNING
        await asyncio.to_thread(run_until_killed, stopped_server)
        current_states = await task_states(environment)
        assert [current_states[task] for task in flag_tasks] == [TaskState.SUCCEEDED] * 2
        assert current_states[export] is TaskState.RUNNING

        await asyncio.to_thread(stopped_server.start)  # without the fault
        try:
            await _wait_until_ended(environment, export)
            assert (await task_states(environment))[export] is TaskState.SUCCEEDED
        finally:
            await asyncio.to_thread(stopped_server.stop)


async def _wait_until_ended(environment: Environment, task: tuple[int, str]) -> None:
    async with asyncio.timeout(TASK_LIMIT):
        while (await task_states(environment))[task] in (TaskState.QUEUED, TaskState.RUNNING):  # noqa: ASYNC110 - rows
            await asyncio.sleep(0.05)
