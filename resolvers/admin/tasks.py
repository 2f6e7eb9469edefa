"""Background tasks: a worker leases a task and continues it from its last checkpoint."""

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.files.upload_removal import drop_unreferenced_objects
from mail.storage.blobs.errors import CorruptBlob
from models.admin.tasks import Task, TaskKind, TaskState
from models.errors import DamagedContent, Forbidden, InvalidInput, NotFound, RequestError
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.events.wakeups import TASKS
from models.runtime import leases
from models.runtime.environment import Environment, wake_workers_after_commit
from models.runtime.worker_stop import is_worker_stopping, wait_for_event_or_worker_stop
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.outages import storage_failure
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.addresses import file_create as address_file_create
from resolvers.admin import held_copy_task, task_queue
from resolvers.admin.task_steps import (
    TaskRunner,
    TaskStepPlan,
    TaskStepPlanner,
    TaskStepResult,
    task_result,
)
from resolvers.admin.task_turns import TaskTurns
from resolvers.auth import security_messages
from resolvers.blobs import deletion as blob_deletion
from resolvers.context import Context
from resolvers.filters import apply_task
from resolvers.filters import file_create as filter_file_create
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
from resolvers.transfer import exports, import_steps, imports, passphrases, record_tasks
from resolvers.users import delete as user_delete
from resolvers.users import purge
from resolvers.users.creation import file_create as user_file_create
from resolvers.users.quota import quota_recalculation, quota_warnings
from resolvers.viewer import Viewer


class TaskOrder(StrEnum):
    """The order of a list of tasks; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(TaskOrder)
RETRY_AFTER_ERROR_SECONDS = 60.0  # after an unexpected error
POLL_SECONDS = 15.0  # between checks without wake-up
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
    order: TaskOrder = TaskOrder.CREATED_AT_DESC,
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
        await task_queue.cancel_waiting_tasks(ctx, session, ids)
        statement = update(Task).where(col(Task.id).in_(ids))
        await connection.execute(
            statement.where(col(Task.state) == TaskState.RUNNING).values(cancelled=True)
        )
        for row in rows:
            if row:
                await _delete_passphrase_if_finished(session, row)
                await ctx.record_change(
                    session, _stream_of_task(row), EventType.TASK_UPDATED, [row.id]
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
    turns = TaskTurns()

    async def run_task(task: ColumnRow) -> None:
        await _run_task_or_end_lease_later(environment, task, turns)

    with environment.wakeups.follow([TASKS]) as wakeup:
        try:
            while not is_worker_stopping():
                wakeup.clear()
                try:
                    await turns.start_waiting_tasks(environment, TASK_RUNNERS, run_task, wakeup)
                except Exception:  # keep running: the database can be back at the next attempt
                    log.exception("Could not look for tasks")
                await wait_for_event_or_worker_stop(wakeup, POLL_SECONDS)
            await turns.wait_for_running_tasks()
        finally:
            await turns.cancel_running_tasks()


async def run_next_task(environment: Environment, turns: TaskTurns | None = None) -> bool:
    """Lease and run the next free task. Returns False if there is none.

    Without `turns` it doesn't leave its place to other tasks.
    """
    task = await task_queue.lease_next_task(environment, TASK_RUNNERS)
    if task is None:
        return False
    await _run_task_or_end_lease_later(environment, task, turns or TaskTurns())
    return True


async def _run_task_or_end_lease_later(
    environment: Environment, task: ColumnRow, turns: TaskTurns
) -> None:
    """Run a task. After an error, end its lease later, so that a worker tries again, and raise."""
    try:
        with leases.protect_leases_in_use(environment, task.lease):
            await _run_task(environment, task, turns)
    except Exception as problem:
        is_leased_task = col(Task.id) == task.id, col(Task.lease) == task.lease
        values = {"attempts": 0} if storage_failure(problem) else {}  # an outage is no attempt
        delay = RETRY_AFTER_ERROR_SECONDS
        leases.end_lease_at_later_heartbeat(
            environment, Task, *is_leased_task, delay_seconds=delay, **values
        )
        raise


async def _run_task(environment: Environment, task: ColumnRow, turns: TaskTurns) -> None:
    """Run a task until it is finished, fails, leaves its place or raises an unexpected error."""
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
        await _open_planner_and_run_steps(ctx, task, turns)
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
    except Exception as problem:
        if task.attempts >= MAX_ATTEMPTS and not storage_failure(problem):
            await _store_task_result_and_release_lease(
                ctx, task, TaskState.FAILED, error=INTERNAL_ERROR_TEXT
            )
        raise


async def _open_planner_and_run_steps(ctx: Context, task: ColumnRow, turns: TaskTurns) -> None:
    """Run the steps of a task, each with its progress in one transaction."""
    runner, order, checkpoint = TASK_RUNNERS[task.kind], task.order, task.checkpoint or {}
    planner_context = (
        runner.open_planner(ctx, order, checkpoint)
        if runner.open_planner
        else nullcontext(runner.plan)
    )
    async with planner_context as plan:
        await _run_task_steps_and_store_result(ctx, task, plan, turns)


async def _run_task_steps_and_store_result(
    ctx: Context, task: ColumnRow, plan_step: TaskStepPlanner, turns: TaskTurns
) -> None:
    """Run steps until the task ends, is cancelled, or must yield to another worker or task."""
    checkpoint, done_count, has_more = task.checkpoint or {}, task.done_count, True
    begun_at = asyncio.get_running_loop().time()
    while has_more:
        async with turns.step_slots:
            result = await _run_step_unless_cancelled(ctx, task, plan_step, checkpoint, done_count)
        if result is None:
            break
        checkpoint, has_more = result.checkpoint, result.has_more
        done_count += result.done_count
        if has_more and is_worker_stopping():  # another worker continues after this step
            return
        if has_more and turns.must_leave_place(begun_at):
            await _store_place_in_queue_and_release_lease(ctx, task)
            return
    if done_count:  # it can have changed many messages
        await ctx.environment.database.refresh_planner_statistics()
    state = TaskState.CANCELLED if has_more else TaskState.SUCCEEDED
    await _store_task_result_and_release_lease(
        ctx, task, state, result=task_result(checkpoint, done_count)
    )


async def _run_step_unless_cancelled(
    ctx: Context,
    task: ColumnRow,
    plan_step: TaskStepPlanner,
    checkpoint: dict[str, Any],
    done_count: int,
) -> TaskStepResult | None:
    """Run a step in a transaction with its progress; None if the task is cancelled."""
    step_plan = await plan_step(ctx, task.order, checkpoint)
    async with ctx.write_session(_stream_of_task(task), *step_plan.stream_ids) as session:
        if await _is_cancelled(session, task):
            return None
        result = await TASK_RUNNERS[task.kind].run_step(
            ctx, session, task.order, checkpoint, step_plan
        )
        values: dict[str, Any] = {
            "checkpoint": result.checkpoint,
            "done_count": done_count + result.done_count,
            "attempts": 0,
        }
        if result.total is not None:
            values["total_count"] = result.total
        await _require_lease_and_store_task_progress(ctx, session, task, values)
    await drop_unreferenced_objects(ctx.environment, result.object_names)
    return result


async def _store_place_in_queue_and_release_lease(ctx: Context, task: ColumnRow) -> None:
    """Let a task wait again, so that tasks of other accounts run."""
    async with ctx.write_session(_stream_of_task(task)) as session:
        values = task_queue.waiting_again_values(ctx.environment)
        await _require_lease_and_store_task_progress(ctx, session, task, values)
        wake_workers_after_commit(session, TASKS)  # another server may have a free place


async def _load_result_so_far(ctx: Context, task: ColumnRow) -> dict[str, Any]:
    """Return the result of a task that can't continue."""
    statement = select(col(Task.checkpoint), col(Task.done_count)).where(col(Task.id) == task.id)
    ((checkpoint, done_count),) = await ctx.read(statement)
    return task_result(checkpoint or {}, done_count)


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
    **{
        record_kind.kind: TaskRunner(
            record_tasks.plan_nothing,
            record_tasks.store_prepared_batch,
            open_planner=record_kind.open_file_and_yield_planner,
        )
        for record_kind in (
            address_file_create.ADDRESSES_CREATE,
            filter_file_create.FILTERS_CREATE,
            user_file_create.USERS_CREATE,
        )
    },
    repair.TASK_KIND: TaskRunner(repair.plan_repair_of_next_part, repair.repair_checked_part),
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
    await ctx.record_change(session, _stream_of_task(task), EventType.TASK_UPDATED, [task.id])


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
