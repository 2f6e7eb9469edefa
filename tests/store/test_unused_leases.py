"""A running process gives back what the store leases to it and no work of it uses."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import Task, TaskState
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from resolvers.admin import tasks
from tests.conftest import Client
from tests.support.mail_servers.queue_worker import until
from tests.support.operations.bulk_operations import call
from tests.support.stores.other_processes import another_process, free_after_two_looks
from tests.support.stores.sample_rows import insert_unchecked, sample_row

ROOT = Path(__file__).parents[2]


async def holder(world: Environment, table: Any) -> int | None:
    (row,) = await world.database.read(select(core_table(table).c.holder))
    found: int | None = row.holder
    return found


async def lease_row(world: Environment, table: Any) -> tuple[Environment, int]:
    """Store a row that a process holds; return the process, and the key of its work."""
    process = another_process(world)
    row = sample_row(table) | {"holder": await leases.ensure_registered(process)}
    if "lease" in core_table(table).c:
        row["lease"] = 5
    await insert_unchecked(world, table, row)
    return process, 5 if table in leases.LEASED_TABLES[1:-1] else 7


@pytest.mark.parametrize("table", leases.LEASED_TABLES, ids=lambda table: table.__tablename__)
async def test_every_kind_of_lease_without_work_is_given_back(
    world: Environment, table: Any
) -> None:
    process, _ = await lease_row(world, table)
    other = another_process(world, name="another")
    await leases.ensure_registered(other)
    assert await free_after_two_looks(other) == 0
    assert await holder(world, table) == process.process.id
    assert await free_after_two_looks(process) == 1
    assert await holder(world, table) is None
    assert await free_after_two_looks(process) == 0


@pytest.mark.parametrize("table", leases.LEASED_TABLES, ids=lambda table: table.__tablename__)
async def test_every_kind_of_lease_is_kept_while_work_uses_it(
    world: Environment, table: Any
) -> None:
    process, work = await lease_row(world, table)
    with leases.use_leases(process, work):
        with leases.use_leases(process, work):
            assert await free_after_two_looks(process) == 0
        assert await free_after_two_looks(process) == 0
    assert await holder(world, table) == process.process.id
    assert await free_after_two_looks(process) == 1
    assert not process.process.work_keys


def test_every_module_that_takes_leases_tells_that_they_are_in_use() -> None:
    takers = {
        path.relative_to(ROOT).as_posix(): text
        for area in ("mail", "resolvers")
        for path in (ROOT / area).rglob("*.py")
        if "leases.ensure_registered(" in (text := path.read_text())
    }
    takers.pop("mail/queue/recipient_leases.py")  # mail/outbound/worker.py lists what is under way
    takers.pop(
        "resolvers/submission/compose_requests.py"
    )  # a listener only counts while its process does
    assert len(takers) >= len(leases.LEASED_TABLES) - 1
    assert [path for path, text in takers.items() if "leases.use_leases(" not in text] == []


async def test_a_task_whose_end_the_store_lost_is_done_again(
    post: Client, world: Environment
) -> None:
    """A standby can have the claim of a task and lack its end; the process goes on."""
    process = another_process(world)
    working = asyncio.create_task(tasks.run_worker(process))
    try:
        given = {"select": {"all": True}, "set": {"seen": True}, "async": True}
        assert (await call(post, "messageUpdate", **given))["errors"] == []
        await until(lambda: has_ended(world))
        claimed = {"lease": world.new_id(), "holder": process.process.id, "finished_at": None}
        lost = update(Task).values(**claimed, state=TaskState.RUNNING)
        await world.run_transaction(lambda turn: turn.connection.execute(lost).close())
        await until(lambda: has_ended(world))
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def has_ended(world: Environment) -> bool:
    (row,) = await world.database.read(
        select(*select_columns(Task)).where(col(Task.user_id).is_not(None))
    )
    return row.state is TaskState.SUCCEEDED and row.holder is None
