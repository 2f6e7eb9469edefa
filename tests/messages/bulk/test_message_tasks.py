"""Test bulk message changes that run as tasks."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.admin.tasks import Task, TaskState
from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.messages.bulk import bulk_tasks
from resolvers.messages.bulk.bulk_changes import apply_or_queue_bulk_request
from resolvers.messages.bulk.bulk_requests import BulkOutcome, BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.operations.bulk_operations import (
    TASK_FIELDS,
    inbox_selection,
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
)
from tests.support.operations.id_references import id_refs
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def create_flag_task(
    ada_with_mail: GraphQLClient, environment: Environment, **extra: Any
) -> Task:
    """Create a task that flags all messages."""
    changes = FlagChanges.from_flag_names({"flagged": True}, added=["x"])
    request = BulkRequest(
        MessageSelector(conditions=MessageConditions()), changes, always_as_task=True, **extra
    )
    outcome: BulkOutcome = await apply_or_queue_bulk_request(
        client_context(replace(ada_with_mail, environment=environment)), request
    )
    assert outcome.task
    return outcome.task


async def load_task_state(environment: Environment) -> tuple[Any, ...]:
    columns = "state, done_count, total_count, checkpoint, error"
    (row,) = await select_rows(environment, f"SELECT {columns} FROM tasks")  # noqa: S608
    return row


@pytest.mark.parametrize("trigger", ["all", "ids", "async"])
async def test_large_or_async_update_runs_as_task(
    ada_with_mail: GraphQLClient, small_bulk_client: GraphQLClient, trigger: str
) -> None:
    client = ada_with_mail if trigger == "async" else small_bulk_client
    environment = ada_with_mail.environment
    select: dict[str, Any] = (
        {"ids": await list_message_ids(ada_with_mail)} if trigger == "ids" else {"all": True}
    )
    extra = {"async": trigger == "async"}
    answer = await run_message_mutation(
        client, "messageUpdate", select=select, set={"seen": True}, **extra
    )
    task = answer["task"]
    assert (answer["updatedCount"], answer["undo"], answer["errors"]) == (0, None, [])
    assert (task["kind"], task["state"], task["doneCount"], task["totalCount"]) == (
        "MESSAGE_UPDATE", "QUEUED", 0, 3,
    )  # fmt: skip
    assert (await ada_with_mail.load_mailbox()).unseen_count == 3
    assert await tasks.run_next_task(environment) is True
    assert await tasks.run_next_task(environment) is False
    assert (await ada_with_mail.load_mailbox()).unseen_count == 0
    document = f"""query ($id: ID!) {{
      task(by: {{id: $id}}) {{ {TASK_FIELDS[7:-2]} user {{ username }} }} }}"""
    finished_task = (await ada_with_mail(document, id=task["id"]))["task"]
    assert (finished_task["state"], finished_task["doneCount"], finished_task["result"]) == (
        "SUCCEEDED",
        3,
        {"changedCount": 3},
    )
    assert finished_task["user"] == {"username": "ada"}


async def test_move_and_delete_tasks_skip_deleted_messages(
    ada_with_mail: GraphQLClient, small_bulk_client: GraphQLClient
) -> None:
    environment = ada_with_mail.environment
    moved = await run_message_mutation(
        small_bulk_client, "messageMove", select={"all": True}, to={"path": "Brief"}
    )
    deleted = await run_message_mutation(small_bulk_client, "messageDelete", select={"all": True})
    await run_message_mutation(
        ada_with_mail, "messageDelete", select=inbox_selection("2"), permanent=True
    )
    assert await tasks.run_next_task(environment)
    assert await load_mailbox_path_by_subject(ada_with_mail) == {"a": "Brief", "c": "Brief"}
    assert await tasks.run_next_task(environment)
    assert await load_mailbox_path_by_subject(ada_with_mail) == {}
    for answer, kind in ((moved, "MESSAGE_MOVE"), (deleted, "MESSAGE_DELETE")):
        document = "query ($id: ID!) { task(by: {id: $id}) { kind state doneCount totalCount } }"
        assert (await ada_with_mail(document, id=answer["task"]["id"]))["task"] == {
            "kind": kind, "state": "SUCCEEDED", "doneCount": 2, "totalCount": 3,
        }  # fmt: skip


async def test_move_task_fails_if_target_was_deleted(
    small_bulk_client: GraphQLClient, environment: Environment
) -> None:
    await run_message_mutation(
        small_bulk_client, "messageMove", select={"all": True}, to={"path": "Keep"}
    )
    await small_bulk_client(
        """mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { deletedIds } }"""
    )
    assert await tasks.run_next_task(environment)
    assert (await load_task_state(environment))[0::4] == (
        "FAILED",
        "Target mailbox not found.",
    )
    assert len(await load_mailbox_path_by_subject(small_bulk_client)) == 3


async def test_task_is_cancelled_before_and_between_chunks(
    ada_with_mail: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await create_flag_task(ada_with_mail, environment)
    document = """mutation ($tasks: [TaskRef!]!) { taskCancel(input: {tasks: $tasks}) {
        tasks { state } errors { code path } } }"""
    task_id = global_ids.encode("Task", task.id)
    answer = (await ada_with_mail(document, tasks=id_refs([task_id])))["taskCancel"]
    assert answer == {"tasks": [{"state": "CANCELLED"}], "errors": []}
    assert await tasks.run_next_task(environment) is False
    unknown = (
        await ada_with_mail(document, tasks=id_refs([task_id, global_ids.encode("Task", 7)]))
    )["taskCancel"]
    assert unknown["errors"] == [{"code": "NOT_FOUND", "path": ["tasks", "1"]}]

    async with environment.write_session() as session:
        await session.exec(update(Task).values(state=TaskState.RUNNING, finished_at=None))
    await ada_with_mail(document, tasks=id_refs([task_id]))
    monkeypatch.setattr(bulk_tasks, "MESSAGES_PER_STEP", 1)
    assert await tasks.run_next_task(environment)
    assert (await load_task_state(environment))[0] == "CANCELLED"
    assert (await ada_with_mail.load_mailbox()).unseen_count == 3


async def test_task_of_killed_worker_resumes_at_checkpoint(
    ada_with_mail: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_flag_task(ada_with_mail, environment)
    monkeypatch.setattr(bulk_tasks, "MESSAGES_PER_STEP", 1)
    apply_chunk, call_count = bulk_tasks.apply_bulk_request_to_chunk_and_count, 0

    async def apply_chunk_and_die(*arguments: Any) -> int:
        nonlocal call_count
        call_count += 1
        if call_count == 3:
            raise KeyboardInterrupt  # no worker catches it
        return int(await apply_chunk(*arguments))

    monkeypatch.setattr(bulk_tasks, "apply_bulk_request_to_chunk_and_count", apply_chunk_and_die)
    with pytest.raises(KeyboardInterrupt):
        await tasks.run_next_task(environment)
    assert (await load_task_state(environment))[:3] == ("RUNNING", 2, 3)
    assert await tasks.run_next_task(environment) is False  # the dead worker still holds the lease
    last = await load_stream_position(environment, ada_with_mail.user.id)
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment) is True
    assert (await load_task_state(environment))[:3] == ("SUCCEEDED", 3, 3)
    kinds = [
        kind for kind, _ in await load_journal_entries(environment, ada_with_mail.user.id, last)
    ]
    assert kinds == [EventType.MESSAGE_UPDATED, EventType.TASK_UPDATED, EventType.TASK_UPDATED]


async def test_interrupted_task_runs_after_fresh_tasks(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    """Of the interrupted tasks, those that made progress since then run first."""
    stuck, progressed, fresh = [
        await create_flag_task(ada_with_mail, environment) for _ in range(3)
    ]
    async with environment.write_session() as session:
        for task, attempts in ((stuck, 2), (progressed, 0)):
            task_update = update(Task).where(col(Task.id) == task.id)
            await session.exec(task_update.values(state=TaskState.RUNNING, attempts=attempts))
    finished_ids = []
    while await tasks.run_next_task(environment):
        succeeded = await select_rows(environment, "SELECT id FROM tasks WHERE state = 'SUCCEEDED'")
        finished_ids += [key for (key,) in succeeded if key not in finished_ids]
    assert finished_ids == [fresh.id, progressed.id, stuck.id]


async def test_failing_task_does_not_delay_next_task(
    ada_with_mail: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_flag_task(ada_with_mail, environment)
    await create_flag_task(ada_with_mail, environment)
    apply_chunk = bulk_tasks.apply_bulk_request_to_chunk_and_count

    async def fail_once(*_: Any) -> int:
        monkeypatch.setattr(bulk_tasks, "apply_bulk_request_to_chunk_and_count", apply_chunk)
        raise OSError("broken")

    monkeypatch.setattr(bulk_tasks, "apply_bulk_request_to_chunk_and_count", fail_once)

    async def has_succeeded_task() -> bool:
        return ("SUCCEEDED",) in await select_rows(environment, "SELECT state FROM tasks")

    worker = asyncio.create_task(tasks.run_worker(environment))
    try:
        await poll_until(has_succeeded_task)  # earlier than the worker's poll interval
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert sorted(await select_rows(environment, "SELECT state FROM tasks")) == [
        ("RUNNING",),
        ("SUCCEEDED",),
    ]


async def test_worker_that_lost_its_lease_changes_nothing(
    ada_with_mail: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_flag_task(ada_with_mail, environment)
    apply_chunk = bulk_tasks.apply_bulk_request_to_chunk_and_count

    async def lose_lease_and_apply_chunk(*arguments: Any) -> int:
        monkeypatch.setattr(bulk_tasks, "apply_bulk_request_to_chunk_and_count", apply_chunk)
        async with arguments[0].write_session() as session:
            await session.exec(update(Task).values(lease=7))  # as the next worker does
        return int(await apply_chunk(*arguments))

    monkeypatch.setattr(
        bulk_tasks, "apply_bulk_request_to_chunk_and_count", lose_lease_and_apply_chunk
    )
    with pytest.raises(tasks.TaskLeaseLost):
        await tasks.run_next_task(environment)
    assert {tuple(node["imap"]["flags"]) for node in await list_messages(ada_with_mail)} == {()}
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    assert (await load_task_state(environment))[:2] == ("SUCCEEDED", 3)


async def test_task_fails_after_max_attempts(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    await create_flag_task(ada_with_mail, environment)
    async with environment.write_session() as session:
        await session.exec(update(Task).values(attempts=tasks.MAX_ATTEMPTS))
    assert await tasks.run_next_task(environment)
    assert (await load_task_state(environment))[0::4] == (
        "FAILED",
        "Internal error. The administrator finds the cause in the server log.",
    )


async def test_task_skips_messages_changed_since_request(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    await create_flag_task(
        ada_with_mail,
        environment,
        unchanged_since_modseq=await load_stream_position(environment, ada_with_mail.user.id),
    )
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("2"), set={"seen": True}
    )
    assert await tasks.run_next_task(environment)
    assert [node["imap"]["flags"] for node in await list_messages(ada_with_mail)] == [
        ["\\Flagged", "x"], ["\\Seen"], ["\\Flagged", "x"],
    ]  # fmt: skip


async def test_task_is_visible_to_owner_and_root_only(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    task_id = global_ids.encode("Task", (await create_flag_task(ada_with_mail, environment)).id)
    document = "query ($id: ID!) { task(by: {id: $id}) { kind } tasks { totalCount nodes { id } } }"
    expected = {
        "task": {"kind": "MESSAGE_UPDATE"},
        "tasks": {"totalCount": 1, "nodes": [{"id": task_id}]},
    }
    assert await ada_with_mail(document, id=task_id) == expected
    assert await root(document, id=task_id) == expected
    not_visible = {"task": None, "tasks": {"totalCount": 0, "nodes": []}}
    assert await bob(document, id=task_id) == not_visible


async def test_task_list_is_filtered_and_paged(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(5):
        await create_flag_task(ada_with_mail, ada_with_mail.environment)
        clock.tick(seconds=n % 2)
    assert await tasks.run_next_task(ada_with_mail.environment)
    document = """query ($filter: TaskFilter, $first: Int, $after: String) {
        tasks(filter: $filter, first: $first, after: $after) { totalCount
        nodes { id state user { username } } pageInfo { hasNextPage endCursor } } }"""
    queued = (await ada_with_mail(document, filter={"states": ["QUEUED", "RUNNING"]}))["tasks"]
    assert (queued["totalCount"], len(queued["nodes"])) == (4, 4)
    assert (await ada_with_mail(document, filter={"kinds": ["MESSAGE_MOVE"]}))["tasks"][
        "totalCount"
    ] == 0
    task_ids, page_info = [], {"hasNextPage": True, "endCursor": None}
    while page_info["hasNextPage"]:
        page = (await ada_with_mail(document, first=2, after=page_info["endCursor"]))["tasks"]
        task_ids += [node["id"] for node in page["nodes"]]
        page_info = page["pageInfo"]
    assert len(set(task_ids)) == 5


async def test_worker_claims_one_task_with_outdated_statistics(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    await create_flag_task(ada_with_mail, environment)
    # The statistics then describe a table with one row.
    async with environment.write_session() as session:
        await (await session.connection()).exec_driver_sql("ANALYZE tasks")
    await create_flag_task(ada_with_mail, environment)
    await create_flag_task(ada_with_mail, environment)
    assert [await tasks.run_next_task(environment) for _ in range(4)] == [True, True, True, False]
    assert await select_rows(environment, "SELECT DISTINCT state FROM tasks") == [("SUCCEEDED",)]
