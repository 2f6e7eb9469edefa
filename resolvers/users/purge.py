"""Removal of the data of a deleted user, a chunk for each transaction, the user row last."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.files.upload_removal import ROUND, delete_uploads
from mail.storage.thread_assignment import ended
from models.admin.key_values import KeyValue
from models.auth.security_log import AuthEvent
from models.events.journal import PLATFORM, Change, ChangeKind, Stream
from models.files.blobs import Upload
from models.files.tables import File
from models.messages.tables import Message
from models.spam.quarantine import QuarantineItem
from models.store.columns import picked
from models.submission.tables import Submission
from models.users.tables import DeletedUser, User
from resolvers.admin.task_steps import Plan, Step
from resolvers.context import Context
from resolvers.messages.bulk import row_changes

CHUNK = 1000  # rows of a transaction

Phase = Callable[[Context, AsyncSession, int], Awaitable[Step]]


async def plan(_ctx: Context, order: dict[str, Any], _checkpoint: dict[str, Any]) -> Plan:
    """Plan the next chunk: it locks the user."""
    return Plan([order["user"]])


async def step(
    ctx: Context, session: AsyncSession, order: dict[str, Any], checkpoint: dict[str, Any], _: Plan
) -> Step:
    """Delete the next chunk of rows, one table after the other, and the user at the end.

    Does nothing if the user was restored. Blobs are deleted by the garbage collector.
    """
    user_id, at = order["user"], checkpoint.get("phase", 0)
    gone = select(col(User.id)).where(col(User.id) == user_id, col(User.deleted_at).is_not(None))
    if not await ctx.read(gone):
        return Step(checkpoint)
    done: Step = await _PHASES[at](ctx, session, user_id)
    done.checkpoint = {"phase": at if done.more else at + 1}
    done.more = done.more or at + 1 < len(_PHASES)
    if not checkpoint:
        many = select(func.count()).select_from(Message).where(col(Message.user_id) == user_id)
        ((count,),) = await ctx.read(many)
        done.total = count
    return done


async def _uploads(ctx: Context, session: AsyncSession, user_id: int) -> Step:
    theirs = col(Upload.user_id) == user_id
    gone = await ctx.world.join(session, lambda turn: delete_uploads(turn, theirs))
    return Step({}, more=gone.count == ROUND, objects=gone.objects)


async def _messages(ctx: Context, session: AsyncSession, user_id: int) -> Step:
    """Delete a chunk of messages in mailboxes and update the counters of mailbox and user."""
    asked = select(*picked(Message, row_changes.STATE)).where(
        col(Message.user_id) == user_id, col(Message.archived_at).is_(None)
    )
    rows = await ctx.read(asked.order_by(col(Message.id)).limit(CHUNK))
    await row_changes.remove(ctx, session, rows)
    return Step({}, done=len(rows), more=len(rows) == CHUNK)


async def _archived(ctx: Context, session: AsyncSession, user_id: int) -> Step:
    """Delete a chunk of deleted messages that are still kept."""
    theirs = select(col(Message.id), col(Message.thread_id)).where(col(Message.user_id) == user_id)
    rows = await ctx.read(theirs.order_by(col(Message.id)).limit(CHUNK))
    connection = await session.connection()
    ids = [row.id for row in rows]
    await row_changes.leaving(ctx, session, user_id, ids)
    await connection.execute(delete(Message).where(col(Message.id).in_(ids)))
    await connection.execute(ended({row.thread_id for row in rows}))
    return Step({}, done=len(rows), more=len(rows) == CHUNK)


def _rows(table: Any, owner: Any, key: Any) -> Phase:
    """Return a phase that deletes the rows of a table, the lowest keys first."""

    async def phase(_ctx: Context, session: AsyncSession, user_id: int) -> Step:
        some: Select[Any] = select(key).where(owner == user_id).order_by(key).limit(CHUNK)
        removal = delete(table).where(owner == user_id, key.in_(some)).returning(key)
        gone: Sequence[int] = (await (await session.connection()).execute(removal)).scalars().all()
        if table is Change and gone:
            here = update(Stream).where(col(Stream.id) == user_id)
            await (await session.connection()).execute(here.values(gone=max(gone)))
        return Step({}, more=len(gone) == CHUNK)

    return phase


async def _row(ctx: Context, session: AsyncSession, user_id: int) -> Step:
    """Delete the user row, and with it all rows that refer to it."""
    asked = select(col(DeletedUser.domain_id)).where(col(DeletedUser.id) == user_id)
    domain_id = next((row.domain_id for row in await ctx.read(asked)), None)
    connection = await session.connection()
    await connection.execute(delete(User).where(col(User.id) == user_id))
    await connection.execute(delete(Stream).where(col(Stream.id) == user_id))
    facts = {"did": "removed"} | ({"domain": domain_id} if domain_id else {})
    await ctx.record(session, PLATFORM, ChangeKind.USER_CHANGED, [user_id], **facts)
    return Step({})


_PHASES: tuple[Phase, ...] = (
    _uploads,
    _rows(File, col(File.user_id), col(File.id)),
    _rows(Submission, col(Submission.user_id), col(Submission.id)),
    _messages,
    _archived,
    _rows(QuarantineItem, col(QuarantineItem.user_id), col(QuarantineItem.id)),
    _rows(Change, col(Change.stream_id), col(Change.last)),
    _rows(AuthEvent, col(AuthEvent.user_id), col(AuthEvent.id)),
    _rows(KeyValue, col(KeyValue.stream_id), col(KeyValue.id)),
    _row,
)
