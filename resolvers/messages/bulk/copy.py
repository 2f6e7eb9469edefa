"""Copying of messages, a chunk at a time: new rows that share the stored blobs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.limits import user_limits
from mail.storage import audit_copies
from mail.storage.message_flags import flags
from mail.storage.message_insert import take_quota
from models.admin.audits import AuditRoad
from models.events.journal import ChangeKind
from models.events.wakeups import UNINDEXED
from models.files.blobs import MessageBlob
from models.messages.tables import Message, Thread, ThreadRef
from models.runtime.environment import Turn, ring
from models.store.columns import Picked, insert_or, picked
from resolvers.context import Context
from resolvers.messages.bulk import row_changes

PART = 1000  # per statement


async def copy(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], to: Picked
) -> dict[int, tuple[int, int]]:
    """Copy messages of one account into a mailbox, of the same account or another one.

    Both streams are locked, and the accounts share a tenant: blobs get another reference and are
    not stored again. Returns old and new UID by the ID of each copy. Raises OverQuota.
    """
    ordered = sorted(rows, key=lambda row: (row.mailbox_id, row.uid))
    size, owner = sum(row.size for row in ordered), to.user_id
    take = partial(take_quota, user_id=owner, size=size, many=len(ordered))
    taken = await ctx.world.join(session, take)
    uids = await row_changes.numbers(session, to, len(ordered))
    keys = [ctx.world.key() for _ in ordered]
    last = await ctx.record(
        session,
        owner,
        ChangeKind.MESSAGE_ADDED,
        keys,
        mailbox=to.id,
        uid=list(uids),
        flags=[flags(row) for row in ordered],
    )
    threads: Mapping[int, int] = {}
    if ordered[0].user_id != owner:
        threads = await _threads(ctx, session, ordered, owner)
    at = ctx.world.now()
    given = {
        "user_id": owner,
        "mailbox_id": to.id,
        "modseq": last,
        "saved_at": at,
        "expires": at + timedelta(seconds=to.retention) if to.retention else None,
        "indexed": False,
        "snoozed_until": None,
        "snoozed_from": None,
    }
    if ordered[0].user_id != owner:
        given["forwarded_to"] = None  # the forwards belong to the other account
    own = {
        row.id: {
            **given,
            "id": key,
            "uid": uid,
            "thread_id": threads.get(row.thread_id, row.thread_id),
        }
        for row, key, uid in zip(ordered, keys, uids, strict=True)
    }
    await _add(session, own)
    ring(session, UNINDEXED)
    await row_changes.count(session, last, {to.id: row_changes.arriving(ordered)})

    def told(turn: Turn) -> None:
        user_limits.stored(turn, owner, taken, size)
        audit_copies.stored(turn, owner, keys, AuditRoad.SAVED)

    await ctx.world.join(session, told)
    return {key: (row.uid, uid) for row, key, uid in zip(ordered, keys, uids, strict=True)}


async def _add(session: AsyncSession, own: Mapping[int, Mapping[str, Any]]) -> None:
    """Insert copies of these messages, with the columns that differ."""
    connection = await session.connection()
    for ids in _parts(list(own)):
        whole = select(*picked(Message)).where(col(Message.id).in_(ids))
        made = [{**row._asdict(), **own[row.id]} for row in (await connection.execute(whole)).all()]
        await connection.execute(insert(Message), made)
        needs = select(*picked(MessageBlob)).where(col(MessageBlob.message_id).in_(ids))
        references = [
            {"message_id": own[row.message_id]["id"], "blob_id": row.blob_id}
            for row in (await connection.execute(needs)).all()
        ]
        if (
            references
        ):  # a message without references is copied as it is; `merganser check` reports it
            await connection.execute(insert(MessageBlob), references)


def _parts(keys: Sequence[Any]) -> list[Sequence[Any]]:
    return [keys[start : start + PART] for start in range(0, len(keys), PART)]


async def _threads(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], owner: int
) -> dict[int, int]:
    """Return the owner's thread for each thread of these messages.

    A thread with a known thread key continues the owner's thread; others begin a new one.
    """
    connection = await session.connection()
    theirs = sorted({row.thread_id for row in rows})
    leading: defaultdict[int, list[str]] = defaultdict(list)
    for part in _parts(theirs):
        statement = select(col(ThreadRef.thread_id), col(ThreadRef.key))
        mine = statement.where(col(ThreadRef.thread_id).in_(part))
        for row in (await connection.execute(mine)).all():
            leading[row.thread_id].append(row.key)
    known: dict[str, int] = {}
    for part in _parts(sorted({key for keys in leading.values() for key in keys})):
        statement = select(col(ThreadRef.key), col(ThreadRef.thread_id))
        there = statement.where(col(ThreadRef.user_id) == owner, col(ThreadRef.key).in_(part))
        known |= {row.key: row.thread_id for row in (await connection.execute(there)).all()}
    found = {
        thread: min(led)
        for thread in theirs
        if (led := [known[key] for key in leading[thread] if key in known])
    }
    found |= await _begun(ctx, session, [one for one in theirs if one not in found], owner)
    lead = insert_or(ctx.world.database.dialect, ThreadRef).on_conflict_do_nothing()
    new = [
        {"user_id": owner, "key": key, "thread_id": found[thread]}
        for thread, keys in leading.items()
        for key in keys
        if key not in known
    ]
    if new:
        await connection.execute(lead, new)
    return found


async def _begun(
    ctx: Context, session: AsyncSession, threads: Sequence[int], owner: int
) -> dict[int, int]:
    """Create threads of an account with the subjects of these threads.

    Returns the new IDs by the old.
    """
    connection, found = await session.connection(), dict[int, int]()
    for part in _parts(threads):
        statement = select(col(Thread.id), col(Thread.subject)).where(col(Thread.id).in_(part))
        rows = (await connection.execute(statement)).all()
        found |= {row.id: ctx.world.key() for row in rows}
        at = ctx.world.now()
        made = [
            {"id": found[row.id], "user_id": owner, "subject": row.subject, "created_at": at}
            for row in rows
        ]
        await connection.execute(insert(Thread), made)
    return found
