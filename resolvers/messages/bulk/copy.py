"""Copying of messages, a chunk at a time: new rows that share the stored blobs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.limits import user_limits
from mail.storage import held_copies
from mail.storage.message_flags import imap_flags
from mail.storage.message_sort_keys import sort_key_columns
from models.admin.legal_holds import CopyOrigin
from models.events.event_types import EventType
from models.events.wakeups import UNINDEXED
from models.files.blobs import MessageBlob
from models.messages.sort_keys import MessageSortKey
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import DatabaseTransaction, wake_workers_after_commit
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from resolvers.context import Context
from resolvers.messages.bulk import row_changes
from resolvers.messages.bulk.metadata_quota import take_quota_of_rows
from resolvers.messages.bulk.row_changes import UidChange

KEYS_PER_STATEMENT = 1000  # per statement


async def copy_returning_uids_by_copy_id(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], target: ColumnRow
) -> dict[int, UidChange]:
    """Copy messages of one account into a mailbox, of the same account or another one.

    Both streams are locked, and the accounts share a tenant: blobs get another reference and are
    not stored again. Returns old and new UID by the ID of each copy. Raises OverQuota.
    """
    ordered = sorted(rows, key=lambda row: (row.mailbox_id, row.uid))
    size, owner = sum(row.size for row in ordered), target.user_id
    usage = await ctx.environment.run_in_session(
        session, lambda transaction: take_quota_of_rows(transaction, owner, ordered)
    )
    uids = await row_changes.reserve_uids(session, target, len(ordered))
    copy_ids = [ctx.environment.new_id() for _ in ordered]
    modseq = await ctx.record_change(
        session,
        owner,
        EventType.MESSAGE_ADDED,
        copy_ids,
        mailbox=target.id,
        uid=list(uids),
        flags=[imap_flags(row) for row in ordered],
    )
    threads: Mapping[int, int] = {}
    if ordered[0].user_id != owner:
        threads = await _find_or_create_threads_of_owner(ctx, session, ordered, owner)
    common_values = _common_values_of_copies(target, modseq, ctx.environment.now())
    if ordered[0].user_id != owner:
        common_values["forwarded_to"] = None  # the forwards belong to the other account
    values_by_message_id = {
        row.id: {
            **common_values,
            "id": copy_id,
            "uid": uid,
            "thread_id": threads.get(row.thread_id, row.thread_id),
        }
        for row, copy_id, uid in zip(ordered, copy_ids, uids, strict=True)
    }
    await _insert_copies(session, values_by_message_id)
    wake_workers_after_commit(session, UNINDEXED)
    await row_changes.apply_counter_deltas(
        session, modseq, {target.id: row_changes.arrival_delta(ordered)}
    )

    def record_copies(transaction: DatabaseTransaction) -> None:
        user_limits.report_storage_level_if_raised(transaction, owner, usage, size)
        held_copies.copy_stored_messages_to_legal_holds(
            transaction, owner, copy_ids, CopyOrigin.SAVED
        )

    await ctx.environment.run_in_session(session, record_copies)
    return {
        copy_id: UidChange(row.uid, uid)
        for row, copy_id, uid in zip(ordered, copy_ids, uids, strict=True)
    }


def _common_values_of_copies(target: ColumnRow, modseq: int, saved_at: datetime) -> dict[str, Any]:
    """Return the columns that have the same value in all copies in a mailbox."""
    retention = timedelta(seconds=target.retention) if target.retention else None
    return {
        "user_id": target.user_id,
        "mailbox_id": target.id,
        "modseq": modseq,
        "saved_at": saved_at,
        "expires_at": saved_at + retention if retention else None,
        "indexed": False,
        "snoozed_until": None,
        "snoozed_from": None,
    }


async def _insert_copies(
    session: AsyncSession, values_by_message_id: Mapping[int, Mapping[str, Any]]
) -> None:
    """Insert copies of these messages, with the columns that differ."""
    connection = await session.connection()
    for ids in _chunks(list(values_by_message_id)):
        statement = select(*select_columns(Message)).where(col(Message.id).in_(ids))
        new_rows = [
            {**row._asdict(), **values_by_message_id[row.id]}
            for row in (await connection.execute(statement)).all()
        ]
        await connection.execute(insert(Message), new_rows)
        sort_keys = [sort_key_columns(row) for row in new_rows]
        await connection.execute(insert(MessageSortKey), sort_keys)
        needs = select(*select_columns(MessageBlob)).where(col(MessageBlob.message_id).in_(ids))
        references = [
            {"message_id": values_by_message_id[row.message_id]["id"], "blob_id": row.blob_id}
            for row in (await connection.execute(needs)).all()
        ]
        if (
            references
        ):  # a message without references is copied as it is; `merganser check` reports it
            await connection.execute(insert(MessageBlob), references)


def _chunks(keys: Sequence[Any]) -> list[Sequence[Any]]:
    return [
        keys[start : start + KEYS_PER_STATEMENT]
        for start in range(0, len(keys), KEYS_PER_STATEMENT)
    ]


async def _find_or_create_threads_of_owner(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], owner_id: int
) -> dict[int, int]:
    """Return the owner's thread for each thread of these messages.

    A thread with a known thread key continues the owner's thread; others begin a new one.
    """
    connection = await session.connection()
    thread_ids = sorted({row.thread_id for row in rows})
    leading: defaultdict[int, list[str]] = defaultdict(list)
    for part in _chunks(thread_ids):
        statement = select(col(ThreadKey.thread_id), col(ThreadKey.key))
        source_keys = statement.where(col(ThreadKey.thread_id).in_(part))
        for row in (await connection.execute(source_keys)).all():
            leading[row.thread_id].append(row.key)
    thread_id_by_key: dict[str, int] = {}
    for part in _chunks(sorted({key for keys in leading.values() for key in keys})):
        statement = select(col(ThreadKey.key), col(ThreadKey.thread_id))
        owner_keys = statement.where(
            col(ThreadKey.user_id) == owner_id, col(ThreadKey.key).in_(part)
        )
        thread_id_by_key |= {
            row.key: row.thread_id for row in (await connection.execute(owner_keys)).all()
        }
    chosen_threads = {
        thread: min(parent_thread_ids)
        for thread in thread_ids
        if (
            parent_thread_ids := [
                thread_id_by_key[key] for key in leading[thread] if key in thread_id_by_key
            ]
        )
    }
    chosen_threads |= await _create_threads_by_source_id(
        ctx,
        session,
        [thread_id for thread_id in thread_ids if thread_id not in chosen_threads],
        owner_id,
    )
    lead = insert_with_conflict(
        ctx.environment.database.dialect, ThreadKey
    ).on_conflict_do_nothing()
    new = [
        {"user_id": owner_id, "key": key, "thread_id": chosen_threads[thread]}
        for thread, keys in leading.items()
        for key in keys
        if key not in thread_id_by_key
    ]
    if new:
        await connection.execute(lead, new)
    return chosen_threads


async def _create_threads_by_source_id(
    ctx: Context, session: AsyncSession, thread_ids: Sequence[int], owner_id: int
) -> dict[int, int]:
    """Create threads of an account with the subjects of these threads.

    Returns the new IDs by the old.
    """
    connection, threads_by_user = await session.connection(), dict[int, int]()
    for part in _chunks(thread_ids):
        statement = select(col(Thread.id), col(Thread.subject)).where(col(Thread.id).in_(part))
        rows = (await connection.execute(statement)).all()
        threads_by_user |= {row.id: ctx.environment.new_id() for row in rows}
        at = ctx.environment.now()
        thread_rows = [
            {
                "id": threads_by_user[row.id],
                "user_id": owner_id,
                "subject": row.subject,
                "created_at": at,
            }
            for row in rows
        ]
        await connection.execute(insert(Thread), thread_rows)
    return threads_by_user
