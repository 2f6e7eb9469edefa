"""Storage tiers of message bodies, and moving between them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs import tier_move
from mail.storage.blobs.tiered_store import TieredStore
from models.admin.tasks import Task, TaskKind
from models.errors import NotFound, ServiceUnavailable
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.files.blobs import Blob, StorageTier
from models.messages.tables import Message
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepResult,
    insert_tasks_and_wake_workers,
    next_ids_of_task,
    step_result_after_ids,
)
from resolvers.context import Context
from resolvers.messages.bulk import owners
from resolvers.messages.filters.filter_conditions import MessageSelector

TASK_KIND = TaskKind.MESSAGE_TIER_MOVE
MUTATION = "messageTierMove"
MAX_INLINE_MESSAGES = 100  # a request with more is run as a task
MESSAGES_PER_STEP = 200  # per task step


@dataclass(frozen=True, slots=True)
class TierMoveOutcome:
    """The number of moved messages, or the task that moves them."""

    moved_count: int = 0
    task: Task | None = None


async def move_to_tier_or_queue(
    ctx: Context, selector: MessageSelector, tier: StorageTier
) -> TierMoveOutcome:
    """Move the bodies of these messages to a tier.

    Messages that are already there are not counted. A body that other messages share moves for them
    too. Raises ServiceUnavailable if there is no cold store, Forbidden or NotFound.
    """
    accounts = await owners.require_bulk_accounts(ctx, selector.users)
    if not isinstance(ctx.environment.object_store, TieredStore):
        raise ServiceUnavailable(
            "A second object store is required: set MERGANSER_COLD_OBJECT_STORE_URL.",
            component="blobs",
        )
    selector = await selector.validated_with_filter_sql(ctx, accounts.user_ids)
    conditions = [col(Message.user_id).in_(accounts.user_ids), col(Message.deleted_at).is_(None)]
    conditions_sql = selector.build_conditions(ctx, conditions)
    await _require_selected_ids(ctx, selector, conditions_sql)
    cold = tier is StorageTier.COLD
    order_columns = (col(Message.user_id), col(Message.id))
    rows = await ctx.read(
        select(*order_columns)
        .where(*conditions_sql, tier_move.is_message_with_blobs_to_move(cold=cold))
        .order_by(*order_columns)
    )
    ids, count_by_user = [row.id for row in rows], Counter(row.user_id for row in rows)
    if not rows:
        return TierMoveOutcome()
    # the object store is not awaited inside a database transaction
    late = len(ids) > MAX_INLINE_MESSAGES or ctx.is_writing
    moved = (
        []
        if late or ctx.is_dry_run
        else await tier_move.copy_blobs_to_tier(ctx.environment, ids, cold=cold)
    )
    ctx.environment.reach_fault_point("tier")
    async with ctx.write_session(PLATFORM) as session:
        await owners.write_audit_log_of_bulk_change(ctx, session, accounts, MUTATION, count_by_user)
        if late:
            (task,) = await insert_tasks_and_wake_workers(
                ctx, session, TASK_KIND, [{"ids": ids, "cold": cold}], total_count=len(ids)
            )
            await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
            return TierMoveOutcome(task=task)
        await ctx.environment.run_in_session(
            session, lambda transaction: tier_move.update_rows_of_moved_blobs(transaction, moved)
        )
    return TierMoveOutcome(len(ids))


async def _require_selected_ids(
    ctx: Context, selector: MessageSelector, conditions: Sequence[Any]
) -> None:
    """Raise NotFound if a message given by ID does not exist."""
    if selector.ids is not None:
        found_ids = {row.id for row in await ctx.read(select(col(Message.id)).where(*conditions))}
        for index, key in enumerate(selector.ids):
            if key not in found_ids:
                raise NotFound(str(key), path=["select", "ids"], index=index)


async def copy_next_blobs(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Copy the blobs of the next messages to their new tier, without lost and damaged ones."""
    ids = next_ids_of_task(task_order, checkpoint, MESSAGES_PER_STEP)
    return TaskStepPlan(
        ids=ids,
        prepared=await tier_move.copy_blobs_to_tier(ctx.environment, ids, cold=task_order["cold"]),
    )


async def switch_copied_blobs(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Update the rows of the copied blobs to their new tier."""
    await ctx.environment.run_in_session(
        session,
        lambda transaction: tier_move.update_rows_of_moved_blobs(transaction, task_plan.prepared),
    )
    return step_result_after_ids(task_plan.ids, task_order, checkpoint, len(task_plan.ids))


async def load_storage_tiers(ctx: Context, blob_ids: list[int]) -> list[StorageTier]:
    """Load the storage tiers of these blobs, in this order."""
    statement = select(col(Blob.id)).where(
        col(Blob.id).in_(blob_ids), tier_move.is_in_tier(cold=True)
    )
    cold = {row.id for row in await ctx.read(statement)}
    return [StorageTier.COLD if key in cold else StorageTier.HOT for key in blob_ids]
