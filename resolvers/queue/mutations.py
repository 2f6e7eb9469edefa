"""Delete, flush and hold queue entries; many of them by a task, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.queue import bulk_updates, held_messages, removal
from models.admin.tasks import Task, TaskKind
from models.errors import InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.submission.tables import Submission
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepResult,
    insert_tasks_and_wake_workers,
    next_ids_of_task,
    step_result_after_ids,
)
from resolvers.context import Context
from resolvers.queue.loaders import (
    QueueEntryConditions,
    is_visible_entry,
    is_waiting_entry,
    visible_entry_clauses,
)
from resolvers.viewer import GuardRule

DELETE_TASK_KIND, FLUSH_TASK_KIND = TaskKind.QUEUE_DELETE, TaskKind.QUEUE_FLUSH
MAX_ENTRIES = 1_000_000  # entries per call


@dataclass(frozen=True, slots=True)
class QueueSelection:
    """A selection of queue entries: by id, by conditions, or all."""

    entry_ids: Sequence[int] | None = None
    conditions: QueueEntryConditions | None = None
    selects_all: bool = False

    def require_one_selector(self) -> None:
        """Raise InvalidInput unless exactly one selector is given."""
        if sum((self.entry_ids is not None, self.conditions is not None, self.selects_all)) != 1:
            text = "Exactly one of `queueEntries`, `filter` and `all` is required."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["queueEntries"]
            )


@dataclass(frozen=True, slots=True)
class QueueChangeResult:
    """The number of changed recipients, or the task that changes them."""

    recipient_count: int = 0
    task: Task | None = None


async def delete_entries_or_queue_task(
    ctx: Context, selection: QueueSelection, *, notifies_sender: bool = False
) -> QueueChangeResult:
    """Cancel the deliveries of queue entries that no worker has leased.

    With `notifies_sender` a task sends a report to each sender. Raises InvalidInput, NotFound,
    Forbidden or LimitReached.
    """
    return await _change_entries_or_queue_task(
        ctx, selection, DELETE_TASK_KIND, needs_task=notifies_sender
    )


async def flush_entries_or_queue_task(ctx: Context, selection: QueueSelection) -> QueueChangeResult:
    """Make deferred deliveries due now, except held ones.

    Raises InvalidInput, NotFound, Forbidden or LimitReached.
    """
    return await _change_entries_or_queue_task(ctx, selection, FLUSH_TASK_KIND)


async def hold_or_release_entries(ctx: Context, entry_ids: Sequence[int], *, is_held: bool) -> None:
    """Hold queue entries or release them. Raises NotFound."""
    rows = await _require_selected_entries(
        ctx, QueueSelection(entry_ids), ctx.environment.options.bulk_max_items
    )
    ids = [row.id for row in rows]
    async with ctx.write_session(*_owner_stream_ids(rows)) as session:
        update_hold = (
            bulk_updates.hold_submissions if is_held else bulk_updates.release_held_submissions
        )
        await ctx.environment.run_in_session(
            session, lambda transaction: update_hold(transaction, ids)
        )
        mutation = "queueHold" if is_held else "queueRelease"
        await _write_audit_log_of_others_entries(ctx, session, mutation, rows, {"held": is_held})


async def _change_entries_or_queue_task(
    ctx: Context, selection: QueueSelection, task_kind: TaskKind, *, needs_task: bool = False
) -> QueueChangeResult:
    """Change the selected entries now, or by a task if there are many or `needs_task` is set."""
    bulk_limit = ctx.environment.options.bulk_max_items
    rows = await _require_selected_entries(ctx, selection, MAX_ENTRIES)
    ids = [row.id for row in rows]
    if not ids:
        return QueueChangeResult()
    if needs_task or len(ids) > bulk_limit:
        return QueueChangeResult(
            task=await _insert_queue_task_and_audit_log_entry(
                ctx, task_kind, rows, notifies_sender=needs_task
            )
        )
    stream_ids = [*_owner_stream_ids(rows), *await _platform_stream_if_bcc_copies_exist(ctx, ids)]
    async with ctx.write_session(*stream_ids) as session:
        change_entries = (
            held_messages.cancel_and_make_drafts
            if task_kind == DELETE_TASK_KIND
            else bulk_updates.flush_deferred_entries
        )
        changed_ids = await ctx.environment.run_in_session(
            session, lambda transaction: change_entries(transaction, ids)
        )
        await _write_audit_log_of_others_entries(
            ctx, session, MUTATION_BY_TASK_KIND[task_kind], rows, {}
        )
    return QueueChangeResult(len(changed_ids))


MUTATION_BY_TASK_KIND = {DELETE_TASK_KIND: "queueDelete", FLUSH_TASK_KIND: "queueFlush"}


async def _require_selected_entries(
    ctx: Context, selection: QueueSelection, limit: int
) -> list[ColumnRow]:
    """Load the selected visible entries, the oldest first.

    Raises InvalidInput unless exactly one selector is given, NotFound for an unknown id,
    Forbidden for all entries unless the viewer is an ADMIN, and LimitReached if there are too
    many.
    """
    selection.require_one_selector()
    if selection.selects_all:
        ctx.viewer.require(GuardRule(role=Role.ADMIN))
    conditions = [is_visible_entry(ctx)]
    if selection.entry_ids is not None:
        conditions.append(col(Submission.id).in_(set(selection.entry_ids)))
    elif selection.conditions is not None:
        conditions = await visible_entry_clauses(ctx, selection.conditions)
    columns = (Submission.id, Submission.user_id, Submission.queue_id, Submission.envelope_from)
    statement = select(*map(col, columns)).where(is_waiting_entry(), *conditions)
    order = (col(Submission.created_at), col(Submission.id))
    rows = list(await ctx.read(statement.order_by(*order).limit(limit + 1)))
    if len(rows) > limit:
        raise LimitReached(
            f"At most {limit} queue entries can be changed at once.",
            limit=limit,
            used=len(rows),
            path=["filter"],
        )
    found_ids = {row.id for row in rows}
    for nth, entry_id in enumerate(selection.entry_ids or ()):
        if entry_id not in found_ids:
            raise NotFound(str(entry_id), path=["queueEntries", str(nth), "id"])
    return rows


def _owner_stream_ids(rows: Sequence[ColumnRow]) -> list[int]:
    return sorted({PLATFORM if row.user_id is None else row.user_id for row in rows})


async def _platform_stream_if_bcc_copies_exist(ctx: Context, entry_ids: Sequence[int]) -> list[int]:
    """Return the PLATFORM stream if an entry has BCC copies, else nothing.

    A change of the entries must lock it.
    """
    statement = select(col(Submission.id)).where(col(Submission.copy_of).in_(entry_ids)).limit(1)
    return [PLATFORM] if await ctx.read(statement) else []


async def _insert_queue_task_and_audit_log_entry(
    ctx: Context, task_kind: TaskKind, rows: Sequence[ColumnRow], *, notifies_sender: bool
) -> Task:
    """Insert a task that changes those of the entries that are still waiting."""
    ids = [row.id for row in rows]
    is_own = {row.user_id for row in rows} == {ctx.viewer.user_id}
    owner_id = ctx.viewer.user_id if is_own else None
    stream_id = PLATFORM if owner_id is None else owner_id
    async with ctx.write_session(stream_id) as session:
        task_order = {"ids": ids, "notify": notifies_sender}
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, task_kind, [task_order], user_id=owner_id, total_count=len(ids)
        )
        await ctx.record_change(session, stream_id, EventType.TASK_CREATED, [task.id])
        if not is_own:
            values_after = {"entries": len(ids), "notifySender": notifies_sender}
            await audit_log.insert_audit_log_entries(
                ctx,
                session,
                NewAuditLogEntry(
                    MUTATION_BY_TASK_KIND[task_kind], "Task", task.id, after=values_after
                ),
            )
    return task


async def _write_audit_log_of_others_entries(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    rows: Sequence[ColumnRow],
    values_after: dict[str, Any],
) -> None:
    """Write the changes of other users' entries to the audit log, one log entry each."""
    entries_of_others = [
        row for row in rows if row.user_id is None or row.user_id != ctx.viewer.user_id
    ]
    if not entries_of_others:
        return
    statement = select(col(User.id), col(User.domain_id)).where(
        col(User.id).in_({row.user_id for row in entries_of_others} - {None})
    )
    domain_by_user = {row.id: row.domain_id for row in await ctx.read(statement)}
    entries = (
        NewAuditLogEntry(
            mutation,
            "QueueEntry",
            row.id,
            domain_by_user.get(row.user_id),
            {"queueId": row.queue_id, "sender": row.envelope_from},
            values_after or None,
        )
        for row in entries_of_others
    )
    await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def plan_or_bounce_next_entries(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan the next step of a task: its entries and the streams to lock.

    With `notify` the reports are sent here, each in its own transaction.
    """
    entry_ids = next_ids_of_task(task_order, checkpoint, bulk_updates.MAX_SUBMISSIONS)
    if task_order.get("notify"):
        await removal.bounce_unleased_queue_entries(ctx.environment, entry_ids)
        return TaskStepPlan(ids=entry_ids)
    statement = select(col(Submission.user_id)).where(col(Submission.id).in_(entry_ids))
    rows = await ctx.read(statement.distinct())
    return TaskStepPlan(
        [*_owner_stream_ids(rows), *await _platform_stream_if_bcc_copies_exist(ctx, entry_ids)],
        entry_ids,
    )


async def cancel_planned_entries(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    step_plan: TaskStepPlan,
) -> TaskStepResult:
    """Cancel the planned entries and return the result of the task step."""
    if not task_order.get("notify"):
        await ctx.environment.run_in_session(
            session,
            lambda transaction: held_messages.cancel_and_make_drafts(transaction, step_plan.ids),
        )
    return step_result_after_ids(step_plan.ids, task_order, checkpoint, len(step_plan.ids))


async def flush_planned_entries(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    step_plan: TaskStepPlan,
) -> TaskStepResult:
    """Flush the planned entries and return the result of the task step."""

    def flush_in_transaction(transaction: DatabaseTransaction) -> None:
        bulk_updates.flush_deferred_entries(transaction, step_plan.ids)

    await ctx.environment.run_in_session(session, flush_in_transaction)
    return step_result_after_ids(step_plan.ids, task_order, checkpoint, len(step_plan.ids))
