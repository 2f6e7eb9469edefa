"""Background work on messages."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.admin.tasks import Task, TaskState
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_changes import BulkOutcome, BulkRequest, apply_bulk_request
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import Client, Clock, context
from tests.support.mail_servers.queue_worker import until
from tests.support.operations.bulk_operations import TASK, call, inbox, keys, nodes, places
from tests.support.stores.counter_check import journal, reached, rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")


# by a task


async def order(post: Client, world: Environment, **more: Any) -> Task:
    """A task that flags all messages."""
    changes = FlagChanges.from_flag_names({"flagged": True}, added=["x"])
    what = BulkRequest(
        MessageSelector(conditions=MessageConditions()), changes, always_as_task=True, **more
    )
    done: BulkOutcome = await apply_bulk_request(context(replace(post, world=world)), what)
    assert done.task
    return done.task


async def state(world: Environment) -> tuple[Any, ...]:
    columns = "state, done, total, checkpoint, error"
    (row,) = await rows(world, f"SELECT {columns} FROM tasks")  # noqa: S608
    return row


@pytest.mark.parametrize("asked", ["all", "ids", "async"])
async def test_more_than_a_request_does_is_a_tasks_work(
    post: Client, few: Client, asked: str
) -> None:
    client, world = post if asked == "async" else few, post.world
    select: dict[str, Any] = {"ids": await keys(post)} if asked == "ids" else {"all": True}
    more = {"async": asked == "async"}
    answer = await call(client, "messageUpdate", select=select, set={"seen": True}, **more)
    task = answer["task"]
    assert (answer["updatedCount"], answer["undo"], answer["errors"]) == (0, None, [])
    assert (task["kind"], task["state"], task["done"], task["total"]) == (
        "MESSAGE_UPDATE", "QUEUED", 0, 3,
    )  # fmt: skip
    assert (await post.box()).unseen == 3
    assert await tasks.run_next_task(world) is True
    assert await tasks.run_next_task(world) is False
    assert (await post.box()).unseen == 0
    document = f"query ($id: ID!) {{ task(id: $id) {{ {TASK[7:-2]} user {{ username }} }} }}"
    done = (await post(document, id=task["id"]))["task"]
    assert (done["state"], done["done"], done["result"]) == ("SUCCEEDED", 3, {"changed": 3})
    assert done["user"] == {"username": "ada"}


async def test_a_task_moves_and_deletes_too_and_leaves_out_what_has_gone(
    post: Client, few: Client
) -> None:
    world = post.world
    moved = await call(few, "messageMove", select={"all": True}, to={"path": "Brief"})
    deleted = await call(few, "messageDelete", select={"all": True})
    await call(post, "messageDelete", select=inbox("2"), permanent=True)
    assert await tasks.run_next_task(world)
    assert await places(post) == {"a": "Brief", "c": "Brief"}
    assert await tasks.run_next_task(world)
    assert await places(post) == {}
    for answer, kind in ((moved, "MESSAGE_MOVE"), (deleted, "MESSAGE_DELETE")):
        document = "query ($id: ID!) { task(id: $id) { kind state done total } }"
        assert (await post(document, id=answer["task"]["id"]))["task"] == {
            "kind": kind, "state": "SUCCEEDED", "done": 2, "total": 3,
        }  # fmt: skip


async def test_a_task_without_its_target_fails_and_says_so(few: Client, world: Environment) -> None:
    await call(few, "messageMove", select={"all": True}, to={"path": "Keep"})
    await few("""mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { deletedIds } }""")
    assert await tasks.run_next_task(world)
    assert (await state(world))[0::4] == ("FAILED", "no such object")
    assert len(await places(few)) == 3


async def test_a_task_is_cancelled_before_and_between_its_chunks(
    post: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await order(post, world)
    document = """mutation ($ids: [ID!]!) { taskCancel(input: {ids: $ids}) {
        tasks { state } errors { code path index } } }"""
    key = global_ids.encode("Task", task.id)
    answer = (await post(document, ids=[key]))["taskCancel"]
    assert answer == {"tasks": [{"state": "CANCELLED"}], "errors": []}
    assert await tasks.run_next_task(world) is False
    unknown = (await post(document, ids=[key, global_ids.encode("Task", 7)]))["taskCancel"]
    assert unknown["errors"] == [{"code": "NOT_FOUND", "path": ["ids"], "index": 1}]

    async with world.write_session() as session:
        await session.exec(update(Task).values(state=TaskState.RUNNING, finished_at=None))
    await post(document, ids=[key])
    monkeypatch.setattr(bulk_changes, "MESSAGES_PER_STEP", 1)
    assert await tasks.run_next_task(world)
    assert (await state(world))[0] == "CANCELLED"
    assert (await post.box()).unseen == 3


async def test_a_killed_workers_task_goes_on_where_it_was(
    post: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await order(post, world)
    monkeypatch.setattr(bulk_changes, "MESSAGES_PER_STEP", 1)
    work_on, times = bulk_changes.apply_task_chunk, 0

    async def killed(*given: Any) -> int:
        nonlocal times
        times += 1
        if times == 3:
            raise KeyboardInterrupt  # what no worker catches
        return int(await work_on(*given))

    monkeypatch.setattr(bulk_changes, "apply_task_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        await tasks.run_next_task(world)
    assert (await state(world))[:3] == ("RUNNING", 2, 3)
    assert await tasks.run_next_task(world) is False  # it is held
    last = await reached(world, post.user.id)
    await taken_for_dead(world)
    assert await tasks.run_next_task(world) is True
    assert (await state(world))[:3] == ("SUCCEEDED", 3, 3)
    kinds = [kind for kind, _ in await journal(world, post.user.id, last)]
    assert kinds == [ChangeKind.MESSAGE_UPDATED, ChangeKind.TASK_CHANGED, ChangeKind.TASK_CHANGED]


async def test_an_interrupted_task_comes_after_the_others(post: Client, world: Environment) -> None:
    """Those that went on since their last interruption come first among the interrupted ones."""
    stuck, went_on, fresh = [await order(post, world) for _ in range(3)]
    async with world.write_session() as session:
        for task, attempts in ((stuck, 2), (went_on, 0)):
            this = update(Task).where(col(Task.id) == task.id)
            await session.exec(this.values(state=TaskState.RUNNING, attempts=attempts))
    ended = []
    while await tasks.run_next_task(world):
        found = await rows(world, "SELECT id FROM tasks WHERE state = 'SUCCEEDED'")
        ended += [key for (key,) in found if key not in ended]
    assert ended == [fresh.id, went_on.id, stuck.id]


async def test_a_task_that_fails_does_not_delay_the_next_one(
    post: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await order(post, world)
    await order(post, world)
    work_on = bulk_changes.apply_task_chunk

    async def broken_once(*_: Any) -> int:
        monkeypatch.setattr(bulk_changes, "apply_task_chunk", work_on)
        raise OSError("broken")

    monkeypatch.setattr(bulk_changes, "apply_task_chunk", broken_once)

    async def one_has_ended() -> bool:
        return ("SUCCEEDED",) in await rows(world, "SELECT state FROM tasks")

    running = asyncio.create_task(tasks.run_worker(world))
    try:
        await until(one_has_ended)  # sooner than the worker looks unasked
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert sorted(await rows(world, "SELECT state FROM tasks")) == [("RUNNING",), ("SUCCEEDED",)]


async def test_a_worker_that_lost_its_lease_changes_nothing(
    post: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await order(post, world)
    work_on = bulk_changes.apply_task_chunk

    async def slow(*given: Any) -> int:
        monkeypatch.setattr(bulk_changes, "apply_task_chunk", work_on)
        async with given[0].write_session() as session:
            await session.exec(update(Task).values(lease=7))  # as the next one does
        return int(await work_on(*given))

    monkeypatch.setattr(bulk_changes, "apply_task_chunk", slow)
    with pytest.raises(tasks.TaskLeaseLost):
        await tasks.run_next_task(world)
    assert {tuple(node["flags"]) for node in await nodes(post)} == {()}
    await taken_for_dead(world)
    assert await tasks.run_next_task(world)
    assert (await state(world))[:2] == ("SUCCEEDED", 3)


async def test_a_task_that_takes_its_workers_along_is_given_up(
    post: Client, world: Environment
) -> None:
    await order(post, world)
    async with world.write_session() as session:
        await session.exec(update(Task).values(attempts=tasks.MAX_ATTEMPTS))
    assert await tasks.run_next_task(world)
    assert (await state(world))[0::4] == ("FAILED", "it broke on our side")


async def test_a_task_leaves_out_what_changed_since_it_was_asked_for(
    post: Client, world: Environment
) -> None:
    await order(post, world, unchanged_since_modseq=await reached(world, post.user.id))
    await call(post, "messageUpdate", select=inbox("2"), set={"seen": True})
    assert await tasks.run_next_task(world)
    assert [node["flags"] for node in await nodes(post)] == [
        ["\\Flagged", "x"], ["\\Seen"], ["\\Flagged", "x"],
    ]  # fmt: skip


async def test_others_see_no_task(
    post: Client, bob: Client, root: Client, world: Environment
) -> None:
    key = global_ids.encode("Task", (await order(post, world)).id)
    document = "query ($id: ID!) { task(id: $id) { kind } tasks { totalCount nodes { id } } }"
    mine = {"task": {"kind": "MESSAGE_UPDATE"}, "tasks": {"totalCount": 1, "nodes": [{"id": key}]}}
    assert await post(document, id=key) == mine
    assert await root(document, id=key) == mine
    nothing = {"task": None, "tasks": {"totalCount": 0, "nodes": []}}
    assert await bob(document, id=key) == nothing


async def test_a_list_of_tasks_is_narrowed_and_paged(post: Client, clock: Clock) -> None:
    for n in range(5):
        await order(post, post.world)
        clock.tick(seconds=n % 2)
    assert await tasks.run_next_task(post.world)
    document = """query ($filter: TaskFilter, $first: Int, $after: String) {
        tasks(filter: $filter, first: $first, after: $after) { totalCount
        nodes { id state user { username } } pageInfo { hasNextPage endCursor } } }"""
    queued = (await post(document, filter={"states": ["QUEUED", "RUNNING"]}))["tasks"]
    assert (queued["totalCount"], len(queued["nodes"])) == (4, 4)
    assert (await post(document, filter={"kind": "MESSAGE_MOVE"}))["tasks"]["totalCount"] == 0
    seen, at = [], {"hasNextPage": True, "endCursor": None}
    while at["hasNextPage"]:
        page = (await post(document, first=2, after=at["endCursor"]))["tasks"]
        seen += [node["id"] for node in page["nodes"]]
        at = page["pageInfo"]
    assert len(set(seen)) == 5


async def test_a_worker_takes_one_task_whatever_the_store_thinks_of_the_table(
    post: Client, world: Environment
) -> None:
    await order(post, world)
    async with world.write_session() as session:  # what it knows is of a table with one row
        await (await session.connection()).exec_driver_sql("ANALYZE tasks")
    await order(post, world)
    await order(post, world)
    assert [await tasks.run_next_task(world) for _ in range(4)] == [True, True, True, False]
    assert await rows(world, "SELECT DISTINCT state FROM tasks") == [("SUCCEEDED",)]
