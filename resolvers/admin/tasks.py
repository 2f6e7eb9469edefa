"""Background tasks: a worker leases a task and continues it from its last checkpoint."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, case, func, or_, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.files.upload_removal import drop_unreferenced_objects
from mail.storage.blobs.errors import CorruptBlob
from models.admin.tasks import Task, TaskKind, TaskState
from models.errors import DamagedContent, Forbidden, InvalidInput, NotFound, RequestError
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.events.wakeups import TASKS, wait_for_any_event_or_timeout
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import held_copy_task
from resolvers.admin.task_steps import TaskRunner, TaskStepPlan, TaskStepPlanner
from resolvers.auth import security_messages
from resolvers.blobs import deletion as blob_deletion
from resolvers.context import Context
from resolvers.filters import apply_task
from resolvers.list_orders import list_orders, read_ordered_page
from resolvers.mailboxes import repair
from resolvers.mailboxes import update as mailbox_update
from resolvers.messages import deleted_messages
from resolvers.messages.bulk import bulk_tasks, storage_tiers
from resolvers.notifications import webhook_replay
from resolvers.pagination import read_by_keys
from resolvers.queue import mutations as queue_mutations
from resolvers.search import index_tasks
from resolvers.spam import quarantine_digest
from resolvers.transfer import exports, import_steps, imports, passphrases
from resolvers.users import delete as user_delete
from resolvers.users import purge
from resolvers.users.creation import file_create
from resolvers.users.quota import quota_recalculation, quota_warnings
from resolvers.viewer import Viewer


class TaskOrder(StrEnum):
    """The order of a list of tasks; ties by id."""

    CREATED_ASC = "CREATED_ASC"
    CREATED_DESC = "CREATED_DESC"


LIST_ORDERS = list_orders(TaskOrder)
RETRY_AFTER_ERROR_SECONDS = 60.0  # after an unexpected error
POLL_SECONDS = 15.0  # between checks without wake-up
RESULT_NAMES = (  # members of the last checkpoint that are in the result
    "correctedCount", "createdCount", "deletedCount", "errors", "freedBytes", "knownCount",
    "refused", "refusedCount", "remainingCount", "storedCount", "unlistedCount", "warnings",
)  # fmt: skip
MAX_ATTEMPTS = 5  # without progress
INTERNAL_ERROR_TEXT = "Internal error. The administrator finds the cause in the server log."
MAX_CANCELLED_TASKS = 250  # per call

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskConditions:
    """Conditions of a task list; all must hold."""

    kinds: tuple[TaskKind, ...] | None = None
    states: tuple[TaskState, ...] | None = None


def _is_visible_task(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for the tasks that the viewer can see.

    These are the viewer's own and requested ones, for administrators all. Legal hold copies by
    others are for ROOT only, since another ADMIN can be the audited user.
    """
    if ctx.viewer.role is Role.ROOT:
        return true()
    if ctx.viewer.role is Role.ADMIN:
        return (col(Task.kind) != held_copy_task.TASK_KIND) | (
            col(Task.actor_id) == ctx.viewer.user_id
        )
    return or_(
        col(Task.user_id) == require_user_id(ctx), col(Task.actor_id) == require_user_id(ctx)
    )


async def load_visible_tasks_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load tasks by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(
        ctx, select(*select_columns(Task)).where(_is_visible_task(ctx)), col(Task.id), ids
    )


def _visible_and_filtered_task_clauses(
    ctx: Context, conditions: TaskConditions
) -> list[ColumnElement[bool]]:
    clauses = [_is_visible_task(ctx)]
    if conditions.states is not None:
        clauses.append(col(Task.state).in_(conditions.states))
    if conditions.kinds is not None:
        clauses.append(col(Task.kind).in_(conditions.kinds))
    return clauses


async def count_visible_tasks(ctx: Context, conditions: TaskConditions) -> int:
    """Count the visible tasks that meet the conditions."""
    statement = (
        select(func.count())
        .select_from(Task)
        .where(*_visible_and_filtered_task_clauses(ctx, conditions))
    )
    (row,) = await ctx.read(statement)
    return int(row[0])


async def read_visible_task_page(
    ctx: Context,
    conditions: TaskConditions,
    page_request: PageRequest,
    columns: frozenset[str],
    order: TaskOrder = TaskOrder.CREATED_DESC,
) -> Page[ColumnRow]:
    """Read a page of tasks. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    column_names = {"id", list_order.column, *columns}
    statement = select(*select_columns(Task, column_names)).where(
        *_visible_and_filtered_task_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, Task, page_request, list_order)


async def cancel_tasks(ctx: Context, ids: list[int]) -> None:
    """Cancel tasks at their next step. Finished tasks do not change.

    Raises NotFound if the viewer can't see a task, InvalidInput if there are too many, and
    Forbidden if a task can't be cancelled half-way, such as the deletion of a user.
    """
    if len(ids) > MAX_CANCELLED_TASKS:
        raise InvalidInput(
            f"At most {MAX_CANCELLED_TASKS} tasks can be cancelled at once.",
            constraint=ValidationConstraint.MAX,
            path=["ids"],
        )
    rows = await ctx.load_many(load_visible_tasks_by_id, ids)
    for index, (task_id, row) in enumerate(zip(ids, rows, strict=True)):
        if row is None:
            raise NotFound(str(task_id), path=["ids"], index=index)
        if row.kind in TASK_RUNNERS and not TASK_RUNNERS[row.kind].is_cancellable:
            text = "A task of this kind can't be cancelled."
            raise Forbidden(text, path=["ids"], index=index)
    stream_ids = {_stream_of_task(row) for row in rows if row}
    async with ctx.write_session(*stream_ids) as session:
        connection = await session.connection()
        statement = update(Task).where(col(Task.id).in_(ids))
        await connection.execute(
            statement.where(col(Task.state) == TaskState.QUEUED).values(
                state=TaskState.CANCELLED, finished_at=ctx.environment.now(), cancelled=True
            )
        )
        await connection.execute(
            statement.where(col(Task.state) == TaskState.RUNNING).values(cancelled=True)
        )
        for row in rows:
            if row:
                await _delete_passphrase_if_finished(session, row)
                await ctx.record_change(
                    session, _stream_of_task(row), EventType.TASK_CHANGED, [row.id]
                )


async def _delete_passphrase_if_finished(session: AsyncSession, task: ColumnRow) -> None:
    """Delete the passphrase from the order of a finished task."""
    if passphrases.ORDER_KEY in task.order:
        is_finished = col(Task.id) == task.id, col(Task.finished_at).is_not(None)
        statement = (
            update(Task)
            .where(*is_finished)
            .values(order=passphrases.order_without_passphrase(task.order))
        )
        await (await session.connection()).execute(statement)


def _stream_of_task(task: Any) -> int:
    return PLATFORM if task.user_id is None else int(task.user_id)


async def run_worker(environment: Environment) -> None:
    """Run waiting tasks until cancelled or stopped, including tasks of dead workers."""
    async with leases.keep_process_registered(environment):
        await _run_due_tasks_until_worker_stops(environment)


async def _run_due_tasks_until_worker_stops(environment: Environment) -> None:
    with environment.wakeups.follow([TASKS]) as wakeup:
        while not is_worker_stopping():
            wakeup.clear()
            try:
                await _run_due_tasks(environment)
            except Exception:  # keep running: the database can be back at the next attempt
                log.exception("Could not look for tasks")
            await wait_for_any_event_or_timeout([wakeup], POLL_SECONDS)


async def _run_due_tasks(environment: Environment) -> None:
    """Run each due task. A task that fails is retried later, after the others."""
    while not is_worker_stopping() and (task := await _lease_next_task(environment)) is not None:
        try:
            await _run_task_or_end_lease_later(environment, task)
        except Exception:
            log.exception("Could not continue the task", extra={"task": task.id, "kind": task.kind})


async def run_next_task(environment: Environment) -> bool:
    """Lease and run the next free task. Returns False if there is none."""
    task = await _lease_next_task(environment)
    if task is None:
        return False
    await _run_task_or_end_lease_later(environment, task)
    return True


async def _run_task_or_end_lease_later(environment: Environment, task: ColumnRow) -> None:
    try:
        with leases.protect_leases_in_use(environment, task.lease):
            await _run_task(environment, task)
    except Exception:
        is_leased_task = col(Task.id) == task.id, col(Task.lease) == task.lease
        leases.end_lease_at_later_heartbeat(
            environment, Task, *is_leased_task, delay_seconds=RETRY_AFTER_ERROR_SECONDS
        )
        raise


async def _run_task(environment: Environment, task: ColumnRow) -> None:
    """Run a task until it is finished, fails or raises an unexpected error."""
    viewer = Viewer(task.user_id or 0, Role.USER, frozenset({Scope.FULL}))
    ctx = Context(
        environment, viewer, origin=task.order.get("origin"), reason=task.order.get("reason")
    )
    log.info("Task started", extra={"task": task.id, "kind": task.kind, "attempt": task.attempts})
    if task.attempts > MAX_ATTEMPTS:  # its earlier attempts ended with the death of their workers
        await _store_task_result_and_release_lease(
            ctx, task, TaskState.FAILED, error=INTERNAL_ERROR_TEXT
        )
        return
    try:
        await _open_planner_and_run_steps(ctx, task)
    except RequestError as refusal:
        result = await _load_result_so_far(ctx, task)
        await _store_task_result_and_release_lease(
            ctx, task, TaskState.FAILED, result=result, error=refusal.message
        )
    except CorruptBlob as damage:  # another attempt would find the same bytes
        log_values = {"task": task.id, "kind": task.kind, "damage": str(damage)}
        log.warning("Task failed; the stored data is damaged", extra=log_values)
        result = await _load_result_so_far(ctx, task)
        await _store_task_result_and_release_lease(
            ctx, task, TaskState.FAILED, result=result, error=DamagedContent().message
        )
    except Exception:
        if task.attempts >= MAX_ATTEMPTS:
            await _store_task_result_and_release_lease(
                ctx, task, TaskState.FAILED, error=INTERNAL_ERROR_TEXT
            )
        raise


async def _lease_next_task(environment: Environment) -> ColumnRow | None:
    """Lease the oldest due task; interrupted tasks come last.

    A task that kills its server would otherwise be first again after each restart and block the
    others. Among the interrupted ones, tasks with progress since the interruption come first.
    """
    now, lease = environment.now(), environment.new_id()
    process_id = await leases.ensure_registered(environment)
    due_task_ids = (
        select(col(Task.id))
        .where(
            col(Task.finished_at).is_(None),
            col(Task.kind).in_(TASK_RUNNERS),
            or_(col(Task.not_before).is_(None), col(Task.not_before) <= now),
            leases.is_unleased(Task),
        )
        .order_by(
            case((col(Task.state) == TaskState.RUNNING, 1), else_=0),
            col(Task.attempts),
            col(Task.created_at),
            col(Task.id),
        )
        .limit(1)
    )
    if not await environment.database.read(due_task_ids):
        return None  # an idle worker writes nothing
    # a scalar and no IN: PostgreSQL can run an IN once per task and lease all tasks
    task_id = due_task_ids.with_for_update(skip_locked=True).scalar_subquery()
    statement = (
        update(Task)
        .where(col(Task.id) == task_id, leases.is_registered(process_id))
        .values(
            state=TaskState.RUNNING,
            **leases.lease_values(process_id, lease),
            attempts=Task.attempts + 1,
            started_at=func.coalesce(Task.started_at, now),
        )
        .returning(*select_columns(Task))
    )
    async with environment.write_session() as session:
        return (await (await session.connection()).execute(statement)).first()


async def _open_planner_and_run_steps(ctx: Context, task: ColumnRow) -> None:
    """Run the steps of a task, each with its progress in one transaction."""
    runner, order, checkpoint = TASK_RUNNERS[task.kind], task.order, task.checkpoint or {}
    planner_context = (
        runner.open_planner(ctx, order, checkpoint)
        if runner.open_planner
        else nullcontext(runner.plan)
    )
    async with planner_context as plan:
        await _run_task_steps_and_store_result(ctx, task, plan)


async def _run_task_steps_and_store_result(
    ctx: Context, task: ColumnRow, plan_step: TaskStepPlanner
) -> None:
    runner, order = TASK_RUNNERS[task.kind], task.order
    checkpoint, done_count = task.checkpoint or {}, task.done_count
    state, has_more = TaskState.SUCCEEDED, True
    while has_more:
        step_plan = await plan_step(ctx, order, checkpoint)
        async with ctx.write_session(_stream_of_task(task), *step_plan.stream_ids) as session:
            if await _is_cancelled(session, task):
                state = TaskState.CANCELLED
                break
            result = await runner.run_step(ctx, session, order, checkpoint, step_plan)
            checkpoint, has_more, done_count = (
                result.checkpoint,
                result.has_more,
                done_count + result.done_count,
            )
            values = {"checkpoint": checkpoint, "done_count": done_count, "attempts": 0}
            if result.total is not None:
                values["total_count"] = result.total
            await _require_lease_and_store_task_progress(ctx, session, task, values)
        await drop_unreferenced_objects(ctx.environment, result.object_names)
        if has_more and is_worker_stopping():  # another worker continues after this step
            return
    if done_count:  # it can have changed many messages
        await ctx.environment.database.refresh_planner_statistics()
    await _store_task_result_and_release_lease(
        ctx, task, state, result=_task_result(checkpoint, done_count)
    )


async def _load_result_so_far(ctx: Context, task: ColumnRow) -> dict[str, Any]:
    """Return the result of a task that can't continue."""
    statement = select(col(Task.checkpoint), col(Task.done_count)).where(col(Task.id) == task.id)
    ((checkpoint, done_count),) = await ctx.read(statement)
    return _task_result(checkpoint or {}, done_count)


def _task_result(checkpoint: dict[str, Any], done_count: int) -> dict[str, Any]:
    members = {name: value for name, value in checkpoint.items() if name in RESULT_NAMES}
    return {"changedCount": done_count, **members}


async def _plan_nothing(
    _ctx: Context, _task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    return TaskStepPlan()


BULK_CHANGE_RUNNER = TaskRunner(
    bulk_tasks.plan_streams_of_next_step, bulk_tasks.run_task_step_in_transaction
)
TASK_RUNNERS = {
    TaskKind.MESSAGE_UPDATE: BULK_CHANGE_RUNNER,
    TaskKind.MESSAGE_MOVE: BULK_CHANGE_RUNNER,
    TaskKind.MESSAGE_COPY: BULK_CHANGE_RUNNER,
    TaskKind.MESSAGE_DELETE: BULK_CHANGE_RUNNER,
    TaskKind.MESSAGE_DEDUPLICATE: BULK_CHANGE_RUNNER,
    deleted_messages.TASK_KIND: TaskRunner(
        deleted_messages.plan_nothing, deleted_messages.restore_next_messages
    ),
    storage_tiers.TASK_KIND: TaskRunner(
        storage_tiers.copy_next_blobs, storage_tiers.switch_copied_blobs
    ),
    exports.TASK_KIND: TaskRunner(
        exports.store_next_export_chunk_blobs, exports.insert_export_chunk_parts
    ),
    apply_task.TASK_KIND: TaskRunner(
        apply_task.evaluate_filters_on_next_messages, apply_task.apply_filter_results
    ),
    imports.TASK_KIND: TaskRunner(
        import_steps.plan_nothing,
        import_steps.insert_messages_of_step,
        open_planner=import_steps.open_import_planner,
    ),
    held_copy_task.TASK_KIND: TaskRunner(
        held_copy_task.plan_lock_of_held_user,
        held_copy_task.copy_next_messages,
        is_cancellable=False,
    ),
    user_delete.KIND: TaskRunner(
        purge.plan_purge, purge.delete_next_chunk_of_user_data, is_cancellable=False
    ),
    file_create.KIND: TaskRunner(
        file_create.plan_nothing,
        file_create.store_prepared_user_batch,
        open_planner=file_create.open_file_and_yield_planner,
    ),
    repair.TASK_KIND: TaskRunner(repair.plan_repair_of_next_mailbox, repair.repair_checked_mailbox),
    mailbox_update.TASK_KIND: TaskRunner(_plan_nothing, mailbox_update.set_expiry_of_next_messages),
    quota_recalculation.KIND: TaskRunner(
        quota_recalculation.plan_next_users, quota_recalculation.recalculate_quota_of_next_users
    ),
    webhook_replay.TASK_KIND: TaskRunner(
        webhook_replay.plan_deliveries_of_next_changes, webhook_replay.insert_prepared_deliveries
    ),
    quota_warnings.KIND: TaskRunner(
        quota_warnings.build_warning_if_due_and_store_blobs, quota_warnings.insert_notice_into_inbox
    ),
    security_messages.KIND: TaskRunner(
        security_messages.build_message_and_store_blobs,
        security_messages.insert_notice_into_inbox,
        is_cancellable=False,
    ),
    quarantine_digest.TASK_KIND: TaskRunner(
        quarantine_digest.compose_digest_and_store_blobs,
        quarantine_digest.insert_digest_and_mark_items_reported,
    ),
    queue_mutations.DELETE_TASK_KIND: TaskRunner(
        queue_mutations.plan_or_bounce_next_entries, queue_mutations.cancel_planned_entries
    ),
    queue_mutations.FLUSH_TASK_KIND: TaskRunner(
        queue_mutations.plan_or_bounce_next_entries, queue_mutations.flush_planned_entries
    ),
    blob_deletion.DELETE_TASK_KIND: TaskRunner(
        blob_deletion.delete_blobs_of_next_step, blob_deletion.add_deleted_counts_to_step_result
    ),
    blob_deletion.COLLECT_TASK_KIND: TaskRunner(
        blob_deletion.collect_garbage_now,
        blob_deletion.record_collected_garbage,
        is_cancellable=False,
    ),
    **index_tasks.TASK_RUNNERS,
}


async def _is_cancelled(session: AsyncSession, task: ColumnRow) -> bool:
    statement = select(col(Task.cancelled)).where(col(Task.id) == task.id)
    return bool((await (await session.connection()).execute(statement)).scalar())


async def _require_lease_and_store_task_progress(
    ctx: Context, session: AsyncSession, task: ColumnRow, values: dict[str, Any]
) -> None:
    """Store the progress of a task and record it. Raises TaskLeaseLost if the lease has ended."""
    statement = (
        update(Task).where(col(Task.id) == task.id, col(Task.lease) == task.lease).values(**values)
    )
    if not (await (await session.connection()).execute(statement)).rowcount:
        raise TaskLeaseLost
    await ctx.record_change(session, _stream_of_task(task), EventType.TASK_CHANGED, [task.id])


class TaskLeaseLost(Exception):
    """Another worker has leased the task."""


async def _store_task_result_and_release_lease(
    ctx: Context,
    task: ColumnRow,
    state: TaskState,
    *,
    result: dict[str, Any] | None = None,
    error: str | None = None,
) -> None:
    values = {
        "state": state,
        "finished_at": ctx.environment.now(),
        "result": result,
        "error": error,
    }
    values |= {"lease": None, "holder": None}
    async with ctx.write_session(_stream_of_task(task)) as session:
        await _require_lease_and_store_task_progress(ctx, session, task, values)
        await _delete_passphrase_if_finished(session, task)
    log.info("Task finished", extra={"task": task.id, "state": state})
