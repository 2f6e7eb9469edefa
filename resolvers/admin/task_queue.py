"""The queue of background tasks. Accounts take turns, so that one account can't delay another.

The account of a task is the administrator who started it for others, or else its user; tasks of the
platform share one account. The first task of each account comes before the second task of any
account. Within a turn, the task that became due first comes first.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import Task, TaskKind, TaskState
from models.events.journal import PLATFORM
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from resolvers.admin.task_steps import task_result
from resolvers.context import Context

MAX_CANDIDATES = 8  # tasks that a worker tries to lease before it waits again


def account_of_task(task: Any) -> int:
    """Return the id of the account of a task: its actor, else its user, else PLATFORM."""
    account = task.actor_id if task.actor_id is not None else task.user_id
    return PLATFORM if account is None else int(account)


def _account_sql() -> ColumnElement[int]:
    return func.coalesce(col(Task.actor_id), col(Task.user_id), PLATFORM)


def _is_waiting(environment: Environment) -> list[ColumnElement[bool]]:
    """The conditions of tasks that wait for a worker and may start."""
    return [
        col(Task.finished_at).is_(None),
        or_(col(Task.not_before).is_(None), col(Task.not_before) <= environment.now()),
        leases.is_unleased(Task),
    ]


def _queue_sql(*conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    """Select the ids of waiting tasks with the columns that order the queue.

    Interrupted tasks come last. A task that kills its server would otherwise be first again after
    each restart and block the others. Among them, tasks with progress since the interruption come
    first.
    """
    is_interrupted = case((col(Task.state) == TaskState.RUNNING, 1), else_=0)
    due_at = func.coalesce(col(Task.not_before), col(Task.created_at))
    order = is_interrupted, col(Task.attempts), due_at, col(Task.id)
    turn = func.row_number().over(partition_by=_account_sql(), order_by=order)
    return select(
        col(Task.id).label("id"),
        is_interrupted.label("is_interrupted"),
        turn.label("turn"),
        col(Task.attempts).label("attempts"),
        due_at.label("due_at"),
    ).where(*conditions)


def _queue_order(queue: Any) -> list[Any]:
    columns = queue.c
    return [columns.is_interrupted, columns.turn, columns.attempts, columns.due_at, columns.id]


async def load_queue_positions(ctx: Context, task_ids: list[int]) -> list[int | None]:
    """Load the positions of tasks in the queue, from 1. None for tasks that don't wait."""
    queue = _queue_sql(*_is_waiting(ctx.environment)).subquery()
    position = func.row_number().over(order_by=_queue_order(queue))
    positions = select(queue.c.id, position.label("position")).subquery()
    statement = select(positions.c.id, positions.c.position).where(positions.c.id.in_(task_ids))
    position_by_id = {row.id: int(row.position) for row in await ctx.read(statement)}
    return [position_by_id.get(task_id) for task_id in task_ids]


async def has_waiting_task(
    environment: Environment, kinds: Collection[TaskKind], other_than_accounts: Collection[int]
) -> bool:
    """True if a task of another account waits."""
    statement = select(col(Task.id)).where(
        *_is_waiting(environment),
        col(Task.kind).in_(kinds),
        _account_sql().not_in(list(other_than_accounts)),
    )
    return bool(await environment.database.read(statement.limit(1)))


async def lease_next_task(
    environment: Environment,
    kinds: Collection[TaskKind],
    other_than_accounts: Collection[int] = (),
) -> ColumnRow | None:
    """Lease the first task of the queue, without the tasks of some accounts; None if none waits."""
    process_id = await leases.ensure_process_registered(environment)
    conditions = [*_is_waiting(environment), col(Task.kind).in_(kinds)]
    if other_than_accounts:
        conditions.append(_account_sql().not_in(list(other_than_accounts)))
    queue = _queue_sql(*conditions).subquery()
    candidates = select(queue.c.id).order_by(*_queue_order(queue)).limit(MAX_CANDIDATES)
    for candidate in await environment.database.read(candidates):  # an idle worker writes nothing
        if task := await _lease_if_waiting(environment, candidate.id, process_id):
            return task
    return None


async def _lease_if_waiting(
    environment: Environment, task_id: int, process_id: int
) -> ColumnRow | None:
    """Lease a task; None if another process has leased it."""
    statement = (
        update(Task)
        .where(
            col(Task.id) == task_id,
            *_is_waiting(environment),
            leases.is_registered(process_id),
        )
        .values(
            state=TaskState.RUNNING,
            **leases.lease_values(process_id, environment.new_id()),
            attempts=Task.attempts + 1,
            started_at=func.coalesce(Task.started_at, environment.now()),
        )
        .returning(*select_columns(Task))
    )
    async with environment.write_session() as session:
        return (await (await session.connection()).execute(statement)).first()


async def cancel_waiting_tasks(ctx: Context, session: AsyncSession, ids: list[int]) -> None:
    """End waiting tasks. A task that has left its place after some steps has a result."""
    connection = await session.connection()
    is_waiting = col(Task.id).in_(ids), col(Task.state) == TaskState.QUEUED
    columns = col(Task.id), col(Task.checkpoint), col(Task.done_count)
    for row in (await connection.execute(select(*columns).where(*is_waiting))).all():
        has_begun = row.checkpoint is not None
        await connection.execute(
            update(Task)
            .where(col(Task.id) == row.id, col(Task.state) == TaskState.QUEUED)
            .values(
                state=TaskState.CANCELLED,
                finished_at=ctx.environment.now(),
                cancelled=True,
                result=task_result(row.checkpoint, row.done_count) if has_begun else None,
            )
        )


def waiting_again_values(environment: Environment) -> dict[str, Any]:
    """Return the column values of a task that leaves its place to others after its turn.

    It is due from now on, so that it comes after the tasks that wait already.
    """
    values = leases.freed_lease_values(Task)
    return {**values, "state": TaskState.QUEUED, "not_before": environment.now(), "attempts": 0}
