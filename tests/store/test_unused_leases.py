"""A running process frees leases that no work of it uses."""

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import Task, TaskState
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from resolvers.admin import tasks
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.stores.other_processes import free_leases_after_two_looks, make_other_process
from tests.support.stores.sample_rows import insert_unchecked, sample_row

REPOSITORY = Path(__file__).parents[2]
WORKER_BY_LEASE_MODULE = {  # the module that does the work under leases that another one takes
    "resolvers/admin/task_queue.py": "resolvers/admin/tasks.py",
    "resolvers/certificates/acme_leases.py": "resolvers/certificates/acme_worker.py",
    "resolvers/notifications/push_leases.py": "resolvers/notifications/push_worker.py",
    "resolvers/notifications/webhook_lanes.py": "resolvers/notifications/webhook_worker.py",
}


async def load_holder(environment: Environment, table: Any) -> int | None:
    (row,) = await environment.database.read(select(core_table(table).c.holder))
    process_id: int | None = row.holder
    return process_id


async def insert_leased_row(environment: Environment, table: Any) -> tuple[Environment, int]:
    """Insert a row that a process leases. Return the process and the key of its work."""
    process = make_other_process(environment)
    row = sample_row(table) | {"holder": await leases.ensure_process_registered(process)}
    if "lease" in core_table(table).c:
        row["lease"] = 5
    await insert_unchecked(environment, table, row)
    return process, 5 if table in leases.LEASED_TABLES[1:-1] else 7


async def test_unused_lease_of_every_table_is_freed(environment: Environment) -> None:
    for case in each_case(leases.LEASED_TABLES):
        with case as table:
            process, _ = await insert_leased_row(environment, table)
            other_process = make_other_process(environment, name="another")
            await leases.ensure_process_registered(other_process)
            assert await free_leases_after_two_looks(other_process) == 0
            assert await load_holder(environment, table) == process.process.id
            assert await free_leases_after_two_looks(process) == 1
            assert await load_holder(environment, table) is None
            assert await free_leases_after_two_looks(process) == 0


async def test_used_lease_of_every_table_is_kept(environment: Environment) -> None:
    for case in each_case(leases.LEASED_TABLES):
        with case as table:
            process, work_key = await insert_leased_row(environment, table)
            with leases.protect_leases_in_use(process, work_key):
                with leases.protect_leases_in_use(process, work_key):
                    assert await free_leases_after_two_looks(process) == 0
                assert await free_leases_after_two_looks(process) == 0
            assert await load_holder(environment, table) == process.process.id
            assert await free_leases_after_two_looks(process) == 1
            assert not process.process.work_keys


def test_every_module_that_takes_leases_protects_them() -> None:
    module_texts = {
        path.relative_to(REPOSITORY).as_posix(): text
        for area in ("mail", "resolvers")
        for path in (REPOSITORY / area).rglob("*.py")
        if "leases.ensure_process_registered(" in (text := path.read_text())
    }
    # mail/outbound/worker.py lists its current deliveries
    module_texts.pop("mail/queue/recipient_leases.py")
    # a listener is valid only while its process is registered
    module_texts.pop("resolvers/submission/compose_requests.py")
    assert len(module_texts) >= len(leases.LEASED_TABLES) - 1
    for module, worker in WORKER_BY_LEASE_MODULE.items():
        assert module in module_texts
        module_texts[module] = (REPOSITORY / worker).read_text()
    assert [
        path for path, text in module_texts.items() if "leases.protect_leases_in_use(" not in text
    ] == []


async def test_task_whose_completion_was_lost_runs_again(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    """A standby can have the claim of a task without its completion."""
    process = make_other_process(environment)
    worker_task = asyncio.create_task(tasks.run_worker(process))
    try:
        arguments = {"select": {"all": True}, "set": {"seen": True}, "async": True}
        assert (await run_message_mutation(ada_with_mail, "messageUpdate", **arguments))[
            "errors"
        ] == []
        await poll_until(lambda: has_ended(environment))
        claim_columns = {
            "lease": environment.new_id(),
            "holder": process.process.id,
            "finished_at": None,
        }
        statement = update(Task).values(**claim_columns, state=TaskState.RUNNING)
        await environment.run_transaction(
            lambda transaction: transaction.connection.execute(statement).close()
        )
        await poll_until(lambda: has_ended(environment))
    finally:
        worker_task.cancel()
        await asyncio.gather(worker_task, return_exceptions=True)


async def has_ended(environment: Environment) -> bool:
    (row,) = await environment.database.read(
        select(*select_columns(Task)).where(col(Task.user_id).is_not(None))
    )
    return row.state is TaskState.SUCCEEDED and row.holder is None
