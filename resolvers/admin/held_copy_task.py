"""The task that copies the stored messages of a user for a legal hold."""

from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage import held_copies
from models.admin.legal_holds import LegalHold
from models.admin.tasks import TaskKind
from models.messages.tables import Message
from models.store.columns import select_columns
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.context import Context

TASK_KIND = TaskKind.HELD_COPY
CHUNK_SIZE = 500  # messages per transaction


async def plan_lock_of_held_user(
    ctx: Context, task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan the next chunk.

    Locks the stream of the user, so that no message is deleted before the copy.
    """
    statement = select(col(LegalHold.user_id)).where(col(LegalHold.id) == task_order["legal_hold"])
    return TaskStepPlan([row.user_id for row in await ctx.read(statement)])


async def copy_next_messages(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _: TaskStepPlan,
) -> TaskStepResult:
    """Copy the next messages, including deleted ones, in the order of their ids."""
    statement = select(*select_columns(LegalHold)).where(
        col(LegalHold.id) == task_order["legal_hold"], col(LegalHold.ended_at).is_(None)
    )
    legal_hold = next(iter(await ctx.read(statement)), None)
    if legal_hold is None:
        return TaskStepResult(checkpoint)
    message_ids = select(col(Message.id)).where(
        col(Message.user_id) == legal_hold.user_id, col(Message.id) > checkpoint.get("after", 0)
    )
    if legal_hold.starts_at:
        message_ids = message_ids.where(col(Message.received_at) >= legal_hold.starts_at)
    if legal_hold.ends_at:
        message_ids = message_ids.where(col(Message.received_at) < legal_hold.ends_at)
    ids = [
        message.id
        for message in await ctx.read(message_ids.order_by(col(Message.id)).limit(CHUNK_SIZE))
    ]
    copied_count = (
        await ctx.environment.run_in_session(
            session,
            lambda transaction: held_copies.copy_messages_without_copy(
                transaction, legal_hold, ids
            ),
        )
        if ids
        else 0
    )
    has_more = len(ids) == CHUNK_SIZE
    if not has_more:
        completion = update(LegalHold).where(col(LegalHold.id) == legal_hold.id).values(copied=True)
        await (await session.connection()).execute(completion)
    return TaskStepResult(
        {"after": ids[-1] if ids else checkpoint.get("after", 0)},
        done_count=copied_count,
        has_more=has_more,
    )
