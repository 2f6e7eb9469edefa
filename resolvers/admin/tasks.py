"""Background tasks: a worker leases a task and continues it from its last checkpoint."""

import asyncio
import logging
from contextlib import nullcontext
from dataclasses import dataclass
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
from models.events.wakeups import TASKS
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import require_user_id
from resolvers.admin import legal_holds
from resolvers.admin.task_steps import TaskRunner, TaskStepPlan, TaskStepPlanner
from resolvers.auth import security_messages
from resolvers.context import Context, Viewer
from resolvers.filters import apply_task
from resolvers.mailboxes import repair
from resolvers.mailboxes import update as mailbox_update
from resolvers.messages import deleted_messages
from resolvers.messages.bulk import bulk_tasks, storage_tiers
from resolvers.notifications import webhook_replay
from resolvers.pagination import PageScan, read_by_keys
from resolvers.queue import mutations as queue_mutations
from resolvers.search import index_tasks
from resolvers.spam import quarantine_digest
from resolvers.transfer import exports, imports, passphrases
from resolvers.users import delete as user_delete
from resolvers.users import purge
from resolvers.users.creation import file_create
from resolvers.users.quota import quota_recalculation, quota_warnings

RETRY_AFTER_ERROR_SECONDS = 60.0  # after an unexpected error
POLL_SECONDS = 15.0  # between checks without wake-up
RESULT_NAMES = (  # members of the last checkpoint that are in the result
    "corrected", "left", "stored", "known", "refused", "untold", "created", "errors", "warnings",
)  # fmt: skip
MAX_ATTEMPTS = 5  # without progress
INTERNAL_ERROR_TEXT = "it broke on our side"
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
        return (col(Task.kind) != legal_holds.TASK_KIND) | (
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


def _where_clauses(ctx: Context, conditions: TaskConditions) -> list[ColumnElement[bool]]:
    clauses = [_is_visible_task(ctx)]
    if conditions.states is not None:
        clauses.append(col(Task.state).in_(conditions.states))
    if conditions.kinds is not None:
        clauses.append(col(Task.kind).in_(conditions.kinds))
    return clauses


async def count_tasks(ctx: Context, conditions: TaskConditions) -> int:
    """Count the visible tasks that meet the conditions."""
    statement = select(func.count()).select_from(Task).where(*_where_clauses(ctx, conditions))
    (row,) = await ctx.read(statement)
    return int(row[0])


async def read_task_page(
    ctx: Context, conditions: TaskConditions, page_request: PageRequest, columns: frozenset[str]
) -> Page[ColumnRow]:
    """Read a page of tasks, the newest first."""
    column_names = {"id", "created_at", *columns}
    statement = select(*select_columns(Task, column_names)).where(*_where_clauses(ctx, conditions))
    sort_key = (col(Task.created_at), col(Task.id))
    return await pagination.read_page(
        ctx, PageScan(statement, page_request, sort_key, is_descending=True)
    )


async def cancel_tasks(ctx: Context, ids: list[int]) -> None:
    """Cancel tasks at their next step. Finished tasks do not change.

    Raises NotFound if the viewer can't see a task, InvalidInput if there are too many, and
    Forbidden if a task can't be cancelled half-way, such as the deletion of a user.
    """
    if len(ids) > MAX_CANCELLED_TASKS:
        raise InvalidInput(
            f"at most {MAX_CANCELLED_TASKS} tasks",
            constraint=ValidationConstraint.MAX,
            path=["ids"],
        )
    rows = await ctx.load_many(load_visible_tasks_by_id, ids)
    for index, (task_id, row) in enumerate(zip(ids, rows, strict=True)):
        if row is None:
            raise NotFound(str(task_id), path=["ids"], index=index)
        if row.kind in TASK_RUNNERS and not TASK_RUNNERS[row.kind].is_cancellable:
            raise Forbidden("A task of this kind can't be cancelled", path=["ids"])
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
    """Run waiting tasks until cancelled, including tasks of dead workers."""
    async with leases.registered_process(environment):
        await _run_loop(environment)


async def _run_loop(environment: Environment) -> None:
    with environment.wakeups.follow([TASKS]) as wakeup:
        while True:
            wakeup.clear()
            try:
                await _run_due_tasks(environment)
            except Exception:  # keep running: the database can be back at the next attempt
                log.exception("tasks could not be looked for")
            try:
                async with asyncio.timeout(
                    POLL_SECONDS
                ):  # unlike wait_for, it is also cancelled by a wake-up
                    await wakeup.wait()
            except TimeoutError:
                continue


async def _run_due_tasks(environment: Environment) -> None:
    """Run each due task. A task that fails is retried later, after the others."""
    while (task := await _lease_next_task(environment)) is not None:
        try:
            await _run_or_abandon_lease(environment, task)
        except Exception:
            log.exception("a task could not go on", extra={"task": task.id, "kind": task.kind})


async def run_next_task(environment: Environment) -> bool:
    """Lease and run the next free task. Returns False if there is none."""
    task = await _lease_next_task(environment)
    if task is None:
        return False
    await _run_or_abandon_lease(environment, task)
    return True


async def _run_or_abandon_lease(environment: Environment, task: ColumnRow) -> None:
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
    log.info("task begun", extra={"task": task.id, "kind": task.kind, "attempt": task.attempts})
    if task.attempts > MAX_ATTEMPTS:  # its earlier attempts ended with the death of their workers
        await _finish_task(ctx, task, TaskState.FAILED, error=INTERNAL_ERROR_TEXT)
        return
    try:
        await _open_planner_and_run_steps(ctx, task)
    except RequestError as refusal:
        result = await _load_result_so_far(ctx, task)
        await _finish_task(ctx, task, TaskState.FAILED, result=result, error=refusal.message)
    except CorruptBlob as damage:  # another attempt would find the same bytes
        log_values = {"task": task.id, "kind": task.kind, "damage": str(damage)}
        log.warning("a task ended at damaged bytes", extra=log_values)
        result = await _load_result_so_far(ctx, task)
        await _finish_task(
            ctx, task, TaskState.FAILED, result=result, error=DamagedContent().message
        )
    except Exception:
        if task.attempts >= MAX_ATTEMPTS:
            await _finish_task(ctx, task, TaskState.FAILED, error=INTERNAL_ERROR_TEXT)
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
        await _run_steps_and_finish(ctx, task, plan)


async def _run_steps_and_finish(ctx: Context, task: ColumnRow, plan_step: TaskStepPlanner) -> None:
    runner, order = TASK_RUNNERS[task.kind], task.order
    checkpoint, done_count = task.checkpoint or {}, task.done
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
            values = {"checkpoint": checkpoint, "done": done_count, "attempts": 0}
            if result.total is not None:
                values["total"] = result.total
            await _require_lease_and_store_values(ctx, session, task, values)
        await drop_unreferenced_objects(ctx.environment, result.object_names)
    if done_count:  # it can have changed many messages
        await ctx.environment.database.refresh_planner_statistics()
    await _finish_task(ctx, task, state, result=_task_result(checkpoint, done_count))


async def _load_result_so_far(ctx: Context, task: ColumnRow) -> dict[str, Any]:
    """Return the result of a task that can't continue."""
    statement = select(col(Task.checkpoint), col(Task.done)).where(col(Task.id) == task.id)
    ((checkpoint, done_count),) = await ctx.read(statement)
    return _task_result(checkpoint or {}, done_count)


def _task_result(checkpoint: dict[str, Any], done_count: int) -> dict[str, Any]:
    members = {name: value for name, value in checkpoint.items() if name in RESULT_NAMES}
    return {"changed": done_count, **members}


async def _plan_nothing(
    _ctx: Context, _task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    return TaskStepPlan()


BULK_CHANGE_RUNNER = TaskRunner(bulk_tasks.plan_streams_of_next_step, bulk_tasks.run_task_step)
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
    exports.TASK_KIND: TaskRunner(exports.plan_next_chunk, exports.store_chunk),
    apply_task.TASK_KIND: TaskRunner(
        apply_task.evaluate_filters_on_next_messages, apply_task.apply_filter_results
    ),
    imports.TASK_KIND: TaskRunner(
        imports.plan_nothing,
        imports.insert_messages_of_step,
        open_planner=imports.open_import_planner,
    ),
    legal_holds.TASK_KIND: TaskRunner(
        legal_holds.plan_lock_of_held_user, legal_holds.copy_next_messages, is_cancellable=False
    ),
    user_delete.KIND: TaskRunner(purge.plan_purge, purge.purge_chunk, is_cancellable=False),
    file_create.KIND: TaskRunner(
        file_create.plan_nothing, file_create.store_batch, open_planner=file_create.open_planner
    ),
    repair.TASK_KIND: TaskRunner(repair.check_next_mailbox, repair.repair_checked_mailbox),
    mailbox_update.TASK_KIND: TaskRunner(_plan_nothing, mailbox_update.set_expiry_of_next_messages),
    quota_recalculation.KIND: TaskRunner(
        quota_recalculation.plan_next_users, quota_recalculation.recalculate_chunk
    ),
    webhook_replay.TASK_KIND: TaskRunner(
        webhook_replay.prepare_next_deliveries, webhook_replay.insert_prepared_deliveries
    ),
    quota_warnings.KIND: TaskRunner(quota_warnings.plan_warning, quota_warnings.insert_notice),
    security_messages.KIND: TaskRunner(
        security_messages.build_message_and_store_blobs,
        security_messages.insert_notice,
        is_cancellable=False,
    ),
    quarantine_digest.TASK_KIND: TaskRunner(
        quarantine_digest.plan_digest, quarantine_digest.insert_digest
    ),
    queue_mutations.DELETE_TASK_KIND: TaskRunner(
        queue_mutations.plan_or_bounce_next_entries, queue_mutations.delete_planned_entries
    ),
    queue_mutations.FLUSH_TASK_KIND: TaskRunner(
        queue_mutations.plan_or_bounce_next_entries, queue_mutations.flush_planned_entries
    ),
    **index_tasks.TASK_RUNNERS,
}


async def _is_cancelled(session: AsyncSession, task: ColumnRow) -> bool:
    statement = select(col(Task.cancelled)).where(col(Task.id) == task.id)
    return bool((await (await session.connection()).execute(statement)).scalar())


async def _require_lease_and_store_values(
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


async def _finish_task(
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
        await _require_lease_and_store_values(ctx, session, task, values)
        await _delete_passphrase_if_finished(session, task)
    log.info("task ended", extra={"task": task.id, "state": state})
