"""Task kinds and their division into steps, one transaction each."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import Task, TaskKind
from models.events.wakeups import TASKS
from models.runtime.environment import wake_workers_after_commit
from resolvers.context import Context

RESULT_NAMES = (  # members of the last checkpoint that are in the result
    "correctedCount", "createdCount", "deletedCount", "errors", "freedBytes", "knownCount",
    "refused", "refusedCount", "remainingCount", "storedCount", "unlistedCount", "warnings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskStepPlan:
    """What the next step of a task locks and works on."""

    stream_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    prepared: Any = None  # computed before the transaction, since it takes long


@dataclass(slots=True)
class TaskStepResult:
    """What one step has done, and the checkpoint of the next step."""

    checkpoint: dict[str, Any]
    done_count: int = 0
    has_more: bool = False
    total: int | None = None  # if this step determined it
    object_names: Sequence[str] = ()  # of deleted uploads, to delete after the commit


TaskStepPlanner = Callable[[Context, dict[str, Any], dict[str, Any]], Awaitable[TaskStepPlan]]


class TaskRunner(NamedTuple):
    """How tasks of one kind run: `plan` before each transaction, `run_step` in it.

    Both get the order and the checkpoint. `is_cancellable` says whether a task can be cancelled
    half-way. A kind that keeps something open between its steps has `open_planner`, a context
    manager that returns the planner.
    """

    plan: TaskStepPlanner
    run_step: Callable[
        [Context, AsyncSession, dict[str, Any], dict[str, Any], TaskStepPlan],
        Awaitable[TaskStepResult],
    ]
    is_cancellable: bool = True
    open_planner: (
        Callable[
            [Context, dict[str, Any], dict[str, Any]], AbstractAsyncContextManager[TaskStepPlanner]
        ]
        | None
    ) = None


def task_result(checkpoint: Mapping[str, Any], done_count: int) -> dict[str, Any]:
    """Return the result of a task with its last checkpoint."""
    members = {name: value for name, value in checkpoint.items() if name in RESULT_NAMES}
    return {"changedCount": done_count, **members}


def next_ids_of_task(
    task_order: Mapping[str, Any], checkpoint: Mapping[str, Any], limit: int
) -> list[int]:
    """Return the next ids of an order, at most `limit`."""
    offset = checkpoint.get("at", 0)
    return list(task_order["ids"][offset : offset + limit])


def step_result_after_ids(
    ids: Sequence[int],
    task_order: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    done_count: int,
) -> TaskStepResult:
    """Return the result of a step that has handled these ids of an order."""
    offset = checkpoint.get("at", 0) + len(ids)
    return TaskStepResult({"at": offset}, done_count, has_more=offset < len(task_order["ids"]))


async def insert_tasks_and_wake_workers(
    ctx: Context,
    session: AsyncSession,
    task_kind: TaskKind,
    task_orders: Iterable[Mapping[str, Any]],
    **columns: Any,
) -> list[Task]:
    """Insert a task for each order and wake the task workers; return them in this order.

    The caller records the journal entries. With `user_id` in the columns the tasks belong to
    that user. The viewer is the actor of tasks that belong to another user or to none.
    """
    if columns.get("user_id") != ctx.viewer.user_id:
        columns["actor_id"] = ctx.viewer.user_id or None
    tasks = [
        Task(
            id=ctx.environment.new_id(),
            kind=task_kind,
            order={**order, "origin": ctx.origin, "reason": ctx.reason},
            created_at=ctx.environment.now(),
            **columns,
        )
        for order in task_orders
    ]
    session.add_all(tasks)
    await session.flush()
    wake_workers_after_commit(session, TASKS)
    return tasks
