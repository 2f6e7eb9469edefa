"""Removal of the data of a deleted user, a chunk for each transaction, the user row last."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.files.upload_removal import MAX_UPLOADS_PER_TRANSACTION, delete_upload_rows_up_to_limit
from mail.storage import held_copies
from mail.storage.thread_assignment import delete_empty_threads_statement
from models.admin.key_values import KeyValueEntry
from models.auth.security_log import SecurityEvent
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Change, Stream
from models.files.blobs import Upload
from models.files.tables import File
from models.messages.tables import Message
from models.spam.quarantine import QuarantineItem
from models.store.columns import select_columns
from models.submission.tables import Submission
from models.users.tables import DeletedUser, User
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult
from resolvers.context import Context
from resolvers.messages.bulk import row_changes

CHUNK_ROWS = 1000  # rows of a transaction

PurgePhase = Callable[[Context, AsyncSession, int], Awaitable[TaskStepResult]]


async def plan_purge(
    _ctx: Context, order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan the next chunk: it locks the user."""
    return TaskStepPlan([order["user"]])


async def delete_next_chunk_of_user_data(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _: TaskStepPlan,
) -> TaskStepResult:
    """Delete the next chunk of rows, one table after the other, and the user at the end.

    Does nothing if the user was restored. Blobs are deleted by the garbage collector.
    """
    user_id, phase_number = task_order["user"], checkpoint.get("phase", 0)
    statement = select(col(User.id)).where(
        col(User.id) == user_id, col(User.deleted_at).is_not(None)
    )
    if not await ctx.read(statement):
        return TaskStepResult(checkpoint)
    task_step: TaskStepResult = await _PURGE_PHASES[phase_number](ctx, session, user_id)
    task_step.checkpoint = {"phase": phase_number if task_step.has_more else phase_number + 1}
    task_step.has_more = task_step.has_more or phase_number + 1 < len(_PURGE_PHASES)
    if not checkpoint:
        message_count_statement = (
            select(func.count()).select_from(Message).where(col(Message.user_id) == user_id)
        )
        ((count,),) = await ctx.read(message_count_statement)
        task_step.total = count
    return task_step


async def _purge_uploads(ctx: Context, session: AsyncSession, user_id: int) -> TaskStepResult:
    is_of_user = col(Upload.user_id) == user_id
    deleted = await ctx.environment.run_in_session(
        session, lambda transaction: delete_upload_rows_up_to_limit(transaction, is_of_user)
    )
    return TaskStepResult(
        {}, has_more=deleted.count == MAX_UPLOADS_PER_TRANSACTION, object_names=deleted.objects
    )


async def _delete_chunk_of_mailbox_messages(
    ctx: Context, session: AsyncSession, user_id: int
) -> TaskStepResult:
    """Delete a chunk of messages in mailboxes and update the counters of mailbox and user."""
    statement = select(*select_columns(Message, row_changes.STATE_COLUMNS)).where(
        col(Message.user_id) == user_id, col(Message.deleted_at).is_(None)
    )
    rows = await ctx.read(statement.order_by(col(Message.id)).limit(CHUNK_ROWS))
    await row_changes.delete_permanently(ctx, session, rows)
    return TaskStepResult({}, done_count=len(rows), has_more=len(rows) == CHUNK_ROWS)


async def _purge_deleted_messages(
    ctx: Context, session: AsyncSession, user_id: int
) -> TaskStepResult:
    """Delete a chunk of deleted messages that are still kept."""
    statement = select(col(Message.id), col(Message.thread_id)).where(
        col(Message.user_id) == user_id
    )
    rows = await ctx.read(statement.order_by(col(Message.id)).limit(CHUNK_ROWS))
    connection = await session.connection()
    ids = [row.id for row in rows]
    await row_changes.copy_to_legal_holds(ctx, session, user_id, ids)
    await connection.execute(delete(Message).where(col(Message.id).in_(ids)))
    await connection.execute(delete_empty_threads_statement({row.thread_id for row in rows}))
    return TaskStepResult({}, done_count=len(rows), has_more=len(rows) == CHUNK_ROWS)


async def _purge_quarantine(ctx: Context, session: AsyncSession, user_id: int) -> TaskStepResult:
    """Delete a chunk of quarantined messages. Legal holds without them get a copy."""
    statement = select(col(QuarantineItem.id)).where(col(QuarantineItem.user_id) == user_id)
    rows = await ctx.read(statement.order_by(col(QuarantineItem.id)).limit(CHUNK_ROWS))
    ids = [row.id for row in rows]
    await ctx.environment.run_in_session(
        session,
        lambda transaction: held_copies.copy_removed_quarantine_items_to_legal_holds(
            transaction, ids
        ),
    )
    connection = await session.connection()
    await connection.execute(delete(QuarantineItem).where(col(QuarantineItem.id).in_(ids)))
    return TaskStepResult({}, has_more=len(rows) == CHUNK_ROWS)


def _phase_purging_table(table: Any, owner_column: Any, key_column: Any) -> PurgePhase:
    """Return a phase that deletes the rows of a table, the lowest keys first."""

    async def delete_chunk(_ctx: Context, session: AsyncSession, user_id: int) -> TaskStepResult:
        chunk: Select[Any] = (
            select(key_column).where(owner_column == user_id).order_by(key_column).limit(CHUNK_ROWS)
        )
        removal = (
            delete(table)
            .where(owner_column == user_id, key_column.in_(chunk))
            .returning(key_column)
        )
        deleted_keys: Sequence[int] = (
            (await (await session.connection()).execute(removal)).scalars().all()
        )
        if table is Change and deleted_keys:
            statement = update(Stream).where(col(Stream.id) == user_id)
            await (await session.connection()).execute(
                statement.values(pruned_position=max(deleted_keys))
            )
        return TaskStepResult({}, has_more=len(deleted_keys) == CHUNK_ROWS)

    return delete_chunk


async def _purge_user_row(ctx: Context, session: AsyncSession, user_id: int) -> TaskStepResult:
    """Delete the user row, and with it all rows that refer to it."""
    statement = select(col(DeletedUser.domain_id)).where(col(DeletedUser.id) == user_id)
    domain_id = next((row.domain_id for row in await ctx.read(statement)), None)
    connection = await session.connection()
    await connection.execute(delete(User).where(col(User.id) == user_id))
    await connection.execute(delete(Stream).where(col(Stream.id) == user_id))
    facts = {"domain": domain_id} if domain_id else {}
    await ctx.record_change(session, PLATFORM, EventType.USER_PURGED, [user_id], **facts)
    return TaskStepResult({})


_PURGE_PHASES: tuple[PurgePhase, ...] = (
    _purge_uploads,
    _phase_purging_table(File, col(File.user_id), col(File.id)),
    _phase_purging_table(Submission, col(Submission.user_id), col(Submission.id)),
    _delete_chunk_of_mailbox_messages,
    _purge_deleted_messages,
    _purge_quarantine,
    _phase_purging_table(Change, col(Change.stream_id), col(Change.last)),
    _phase_purging_table(SecurityEvent, col(SecurityEvent.user_id), col(SecurityEvent.id)),
    _phase_purging_table(KeyValueEntry, col(KeyValueEntry.stream_id), col(KeyValueEntry.id)),
    _purge_user_row,
)
