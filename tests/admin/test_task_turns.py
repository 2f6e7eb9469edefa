"""Accounts take turns: a long task of one account does not delay the tasks of others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.admin.tasks import TaskState
from models.runtime.environment import Environment
from resolvers.admin import progress, task_turns, tasks
from resolvers.admin.task_turns import TaskTurns
from tests.conftest import GraphQLClient, ManualClock, client_context, make_client, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead, make_other_process

pytestmark = pytest.mark.usefixtures("verify_consistency", "small_transfer_chunks")
LONG_ARCHIVE_MESSAGES = 120  # 30 steps
TASK_QUERY = "query ($by: TaskRef!) { task(by: $by) { state doneCount queuePosition result } }"


@asynccontextmanager
async def running_worker(environment: Environment) -> AsyncIterator[None]:
    worker = asyncio.create_task(tasks.run_worker(environment))
    try:
        yield
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def start_import(client: GraphQLClient, message_count: int) -> dict[str, str]:
    """Start the import of an mbox file with this number of messages; return the task."""
    mbox = b"".join(
        b"From ann@example.net Sat Jan  3 01:05:34 2026\n"
        + raw_message(f"{number}").replace(b"\r\n", b"\n")
        + b"\n"
        for number in range(message_count)
    )
    payload = await execute_mutation(
        client,
        "userImport",
        "task { id }",
        archive={"text": mbox.decode()},
        skipKnown=False,
    )
    assert payload["errors"] == []
    return {"id": payload["task"]["id"]}


async def load_task(client: GraphQLClient, task: dict[str, str]) -> Any:
    return (await client(TASK_QUERY, by=task))["task"]


async def follow_until_finished(client: GraphQLClient, task: dict[str, str]) -> None:
    """Wait for the event with the end of a task."""
    task_id = global_ids.decode("Task", task["id"])
    rows = [
        row async for row in progress.follow_task_until_finished(client_context(client), task_id)
    ]
    assert rows[-1].state is TaskState.SUCCEEDED


async def test_task_ends_while_long_task_of_other_account_runs(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    long_task = await start_import(ada, LONG_ARCHIVE_MESSAGES)
    short_task = await start_import(bob, 1)
    async with running_worker(environment):
        await follow_until_finished(bob, short_task)
        running = await load_task(ada, long_task)
        assert running["state"] == "RUNNING"
        assert running["doneCount"] < LONG_ARCHIVE_MESSAGES
        await follow_until_finished(ada, long_task)
    assert (await load_task(ada, long_task))["result"]["storedCount"] == LONG_ARCHIVE_MESSAGES


async def test_long_task_leaves_its_place_if_all_are_taken(
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock moves with each step, since a task that has left its place waits from then on."""
    monkeypatch.setattr(task_turns, "MAX_RUNNING_TASKS", 1)
    monkeypatch.setattr(task_turns, "TURN_SECONDS", 0)
    long_task = await start_import(ada, LONG_ARCHIVE_MESSAGES)
    short_task = await start_import(bob, 1)
    moving = replace(environment, reach_fault_point=lambda _: clock.tick(seconds=1))
    async with running_worker(moving):
        await follow_until_finished(bob, short_task)
        assert (await load_task(ada, long_task))["state"] in ("QUEUED", "RUNNING")
        await follow_until_finished(ada, long_task)
    assert (await load_task(ada, long_task))["result"]["storedCount"] == LONG_ARCHIVE_MESSAGES
    assert (await select_rows(environment, "SELECT attempts FROM tasks")) == [(0,), (0,)]


async def test_queue_position_counts_in_turns(ada: GraphQLClient, bob: GraphQLClient) -> None:
    own_tasks = [await start_import(ada, 1) for _ in range(2)]
    other_task = await start_import(bob, 1)
    positions = [(await load_task(ada, task))["queuePosition"] for task in own_tasks]
    assert positions == [1, 3]
    assert (await load_task(bob, other_task))["queuePosition"] == 2
    assert await tasks.run_next_task(ada.environment)
    assert (await load_task(ada, own_tasks[0]))["queuePosition"] is None
    assert (await load_task(ada, own_tasks[1]))["queuePosition"] == 1
    assert (await load_task(bob, other_task))["queuePosition"] == 2


async def test_tasks_of_an_administrator_for_many_users_count_as_one_account(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    for name in ("carol", "dave"):
        await make_client(environment, http, name)
    deletion = await execute_mutation(
        admin_client, "userDelete", "tasks { id }", users={"usernames": ["carol", "dave"]}
    )
    assert deletion["errors"] == []
    own_task = await start_import(ada, 1)
    assert (await load_task(ada, own_task))["queuePosition"] == 2
    other_task = await start_import(bob, 1)
    assert (await load_task(bob, other_task))["queuePosition"] == 3


async def run_turn(environment: Environment) -> None:
    """Run one turn of the next task, as if another account waited for its place."""
    assert await tasks.run_next_task(environment, TaskTurns(other_account_waits=True))


async def test_task_continues_after_its_turns_and_a_crash_in_the_middle(
    ada: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_turns, "TURN_SECONDS", 0)
    task = await start_import(ada, 20)
    for stored_count in (0, 4, 8):
        await run_turn(environment)
        state = await load_task(ada, task)
        assert (state["state"], state["doneCount"]) == ("QUEUED", stored_count)
    crashing = replace(environment, reach_fault_point=crash_at_import)
    with pytest.raises(SimulatedCrash):
        await run_turn(crashing)
    await deregister_as_dead(environment)
    await run_turn(environment)
    assert (await load_task(ada, task))["doneCount"] == 12
    assert await tasks.run_next_task(environment)
    state = await load_task(ada, task)
    assert (state["state"], state["doneCount"]) == ("SUCCEEDED", 20)
    assert state["result"]["storedCount"] == 20
    assert await select_rows(environment, "SELECT count(*) FROM messages") == [(20,)]


class SimulatedCrash(Exception):
    pass


def crash_at_import(fault_point: str) -> None:
    if fault_point == "imported":
        raise SimulatedCrash


async def test_cancelled_task_has_the_result_of_its_turns(
    ada: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_turns, "TURN_SECONDS", 0)
    task = await start_import(ada, 20)
    for _ in range(3):
        await run_turn(environment)
    payload = await execute_mutation(ada, "taskCancel", "tasks { state }", tasks=[task])
    assert payload == {"tasks": [{"state": "CANCELLED"}], "errors": []}
    assert await tasks.run_next_task(environment) is False
    state = await load_task(ada, task)
    assert state["queuePosition"] is None
    assert (state["result"]["storedCount"], state["result"]["changedCount"]) == (8, 8)


async def test_two_servers_run_each_step_once(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    started = [(client, await start_import(client, 12)) for client in (ada, bob) for _ in range(2)]
    other = make_other_process(environment)
    async with running_worker(environment), running_worker(other):
        for client, task in started:
            await follow_until_finished(client, task)
    for client, task in started:
        state = await load_task(client, task)
        assert (state["doneCount"], state["result"]["storedCount"]) == (12, 12)
    assert await select_rows(environment, "SELECT count(*) FROM messages") == [(48,)]
