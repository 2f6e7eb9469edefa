"""Changes of message rows, a chunk at a time: moving, archiving, restoring and deleting.

The functions take rows with STATE_COLUMNS, inside the caller's transaction, which has locked the
streams. A chunk takes a number of statements that does not depend on its length.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Update, bindparam, null, select, update
from sqlalchemy import delete as delete_rows
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.limits import user_limits
from mail.scanners import training_worker
from mail.storage import held_copies
from mail.storage.message_flags import SYSTEM_FLAGS, imap_flags
from mail.storage.thread_assignment import delete_empty_threads_statement
from models.errors import NotFound
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import ColumnRow, UtcDateTime, core_table, select_columns
from models.store.prepared_statements import (
    StatementWithValues,
    execute_statements,
    fetch_rows,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
    rows_from_parameter,
)
from models.users.tables import User
from resolvers.context import Context
from resolvers.messages.bulk.metadata_quota import take_quota_of_rows

STATE_COLUMNS = frozenset(
    {
        "id",
        "user_id",
        "mailbox_id",
        "thread_id",
        "uid",
        "modseq",
        "size",
        "keywords",
        "expires_at",
        "deleted_at",
        "snoozed_until",
        "snoozed_from",
    }
    | set(SYSTEM_FLAGS)
)


@dataclass(slots=True)
class CounterDelta:
    """The change of a mailbox's counters."""

    message_count: int = 0
    unseen_count: int = 0
    size: int = 0


async def load_rows_in_transaction(
    session: AsyncSession,
    message_ids: Sequence[int],
    *,
    extra_columns: frozenset[str] = frozenset(),
) -> Sequence[ColumnRow]:
    """Load these messages inside the transaction, by ID, with STATE_COLUMNS and `extra_columns`."""
    connection = await session.connection()
    statement = _rows_by_id_query(connection.dialect.name, STATE_COLUMNS | extra_columns)
    return await connection.run_sync(fetch_rows, statement, {"ids": list(message_ids)})


@prepare_cached
def _rows_by_id_query(dialect: str, columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
    rows = select(*select_columns(Message, columns)).order_by(col(Message.id))
    return rows.where(is_in_parameter(dialect, col(Message.id), "ids"))


async def apply_counter_deltas(
    session: AsyncSession, modseq: int, delta_by_mailbox: Mapping[int, CounterDelta]
) -> None:
    """Add to the counters of mailboxes, and set their MODSEQ."""
    if delta_by_mailbox:
        await (await session.connection()).run_sync(
            _apply_counter_deltas_sync, modseq, delta_by_mailbox
        )


def _apply_counter_deltas_sync(
    connection: Connection, modseq: int, delta_by_mailbox: Mapping[int, CounterDelta]
) -> None:
    execute_statements(
        connection, [counter_statement(connection.dialect.name, modseq, delta_by_mailbox)]
    )


def counter_statement(
    dialect: str, modseq: int, delta_by_mailbox: Mapping[int, CounterDelta]
) -> StatementWithValues:
    """Build the statement that adds to the counters of mailboxes and sets their MODSEQ."""
    mailboxes = [
        [key, delta.message_count, delta.unseen_count, delta.size]
        for key, delta in sorted(delta_by_mailbox.items())
    ]
    return _counter_update_query(dialect), {"last": modseq, "boxes": mailboxes}


@prepare_cached
def _counter_update_query(dialect: str) -> Update:
    table = core_table(Mailbox)
    names = ("message_count", "unseen_count", "size")
    delta_rows = rows_from_parameter(dialect, "boxes", ("key", *names))
    values = {name: table.c[name] + delta_rows.c[name] for name in names}
    values["modseq"] = integer_parameter("last")
    return update(table).where(table.c.id == delta_rows.c.key).values(values)


def group_rows_by_user(rows: Iterable[ColumnRow]) -> dict[int, list[ColumnRow]]:
    """Group rows by user ID."""
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in rows:
        rows_by_user[row.user_id].append(row)
    return dict(rows_by_user)


def _deltas_by_mailbox(rows: Iterable[ColumnRow], sign: int) -> dict[int, CounterDelta]:
    tallies: defaultdict[int, CounterDelta] = defaultdict(CounterDelta)
    for row in rows:
        if row.mailbox_id is not None:
            tally = tallies[row.mailbox_id]
            tally.message_count += sign
            tally.unseen_count += 0 if row.seen else sign
            tally.size += sign * row.size
    return dict(tallies)


class UidChange(NamedTuple):
    """The UIDs of a message before and after a move, or of a copy and its original."""

    old_uid: int
    new_uid: int


async def move_messages_to_mailbox(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], target: ColumnRow
) -> dict[int, UidChange]:
    """Move messages of one account into its mailbox, in the order of their UIDs.

    Returns old and new UID by message ID. Messages that are already there keep their UID. Raises
    NotFound.
    """
    moved = sorted(
        (row for row in rows if row.mailbox_id != target.id),
        key=lambda r: (r.mailbox_id or 0, r.uid),
    )
    if not moved:
        return {row.id: UidChange(row.uid, row.uid) for row in rows}
    uids = await reserve_uids(session, target, len(moved))
    last = await ctx.record_change(
        session,
        target.user_id,
        EventType.MESSAGE_MOVED,
        [row.id for row in moved],
        mailbox=target.id,
        uid=list(uids),
        fromMailbox=[row.mailbox_id for row in moved],
        fromUid=[row.uid for row in moved],
        flags=[imap_flags(row) for row in moved],
    )
    await _write_placement_and_clear_state(
        ctx, session, zip(moved, uids, strict=True), (target, last)
    )
    tallies = _deltas_by_mailbox(moved, -1)
    tallies[target.id] = arrival_delta(moved)
    await apply_counter_deltas(session, last, tallies)
    await training_worker.enqueue_training_if_junk_changes(ctx.environment, session, moved, target)
    new = {row.id: uid for row, uid in zip(moved, uids, strict=True)}
    return {row.id: UidChange(row.uid, new.get(row.id, row.uid)) for row in rows}


def arrival_delta(rows: Sequence[ColumnRow]) -> CounterDelta:
    """Return what these messages add to the counters of their new mailbox."""
    unseen_count = sum(not row.seen for row in rows)
    return CounterDelta(len(rows), unseen_count, sum(row.size for row in rows))


async def reserve_uids(session: AsyncSession, mailbox: ColumnRow, count: int) -> range:
    """Reserve the next UIDs of a mailbox. Raises NotFound if it was deleted."""
    result = await (await session.connection()).execute(
        update(Mailbox)
        .where(col(Mailbox.id) == mailbox.id)
        .values(uid_next=Mailbox.uid_next + count)
        .returning(col(Mailbox.uid_next))
    )
    uid_end = result.scalar_one_or_none()
    if uid_end is None:
        raise NotFound(str(mailbox.id), path=["to"], noun="Target mailbox")
    return range(uid_end - count, uid_end)


async def _write_placement_and_clear_state(
    ctx: Context,
    session: AsyncSession,
    rows_and_uids: Iterable[tuple[ColumnRow, int]],
    mailbox_and_modseq: tuple[ColumnRow, int],
) -> None:
    mailbox, last = mailbox_and_modseq
    at = ctx.environment.now()
    connection = await session.connection()
    parameters = {
        "rows": [[row.id, uid] for row, uid in rows_and_uids],
        "box": mailbox.id,
        "last": last,
        "at": at,
        "ends": at + timedelta(seconds=mailbox.retention) if mailbox.retention else None,
    }
    await connection.run_sync(
        execute_statements, [(_placement_update_query(connection.dialect.name), parameters)]
    )


@prepare_cached
def _placement_update_query(dialect: str) -> Update:
    table = core_table(Message)
    new = rows_from_parameter(dialect, "rows", ("key", "number"))
    return (
        update(table)
        .where(table.c.id == new.c.key)
        .values(
            mailbox_id=integer_parameter("box"),
            uid=new.c.number,
            modseq=integer_parameter("last"),
            saved_at=bindparam("at", type_=UtcDateTime),
            expires_at=bindparam("ends", type_=UtcDateTime),
            snoozed_until=null(),
            snoozed_from=null(),
            deleted_at=null(),
            deleted_from=null(),
            deleted_mailbox_id=null(),
            purge_at=null(),
        )
    )


async def move_to_deleted(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[ColumnRow],
    path_by_mailbox: Mapping[int, str],
) -> None:
    """Move messages from their mailboxes to the archive of deleted messages.

    Drafts are kept for the undo window, other messages for the retention of the archive.
    """
    at = ctx.environment.now()
    options = ctx.environment.options
    for user_id, user_rows in group_rows_by_user(rows).items():
        last = await _record_and_count_removal_returning_modseq(
            ctx, session, EventType.MESSAGE_DELETED, user_rows
        )
        for row_kind, keep in (
            (False, options.deleted_messages_retention),
            (True, options.undo_window),
        ):
            groups: defaultdict[int, list[int]] = defaultdict(list)
            for row in user_rows:
                if row.draft is row_kind:
                    groups[row.mailbox_id].append(row.id)
            for mailbox_id, ids in groups.items():
                values = {
                    "mailbox_id": None,
                    "modseq": last,
                    "deleted_at": at,
                    "deleted_from": path_by_mailbox[mailbox_id],
                    "deleted_mailbox_id": mailbox_id,
                    "purge_at": at + keep,
                }
                await _update_in_chunks(session, ids, values)
        await _release_quota(session, user_id, user_rows)


async def _update_in_chunks(
    session: AsyncSession, message_ids: Sequence[int], column_values: Mapping[str, Any]
) -> None:
    await (await session.connection()).run_sync(_update_in_chunks_sync, message_ids, column_values)


def _update_in_chunks_sync(
    connection: Connection, message_ids: Sequence[int], column_values: Mapping[str, Any]
) -> None:
    for start in range(0, len(message_ids), 1000):
        part = col(Message.id).in_(message_ids[start : start + 1000])
        connection.execute(update(Message).where(part).values(**column_values))


async def delete_permanently(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow]
) -> None:
    """Delete messages permanently."""
    connection = await session.connection()
    for user_id, user_rows in group_rows_by_user(rows).items():
        await copy_to_legal_holds(ctx, session, user_id, [row.id for row in user_rows])
        await _record_and_count_removal_returning_modseq(
            ctx, session, EventType.MESSAGE_PURGED, user_rows
        )
        for start in range(0, len(user_rows), 1000):
            ids = [row.id for row in user_rows[start : start + 1000]]
            await connection.execute(delete_rows(Message).where(col(Message.id).in_(ids)))
        await connection.execute(
            delete_empty_threads_statement({row.thread_id for row in user_rows})
        )
        await _release_quota(session, user_id, user_rows)


async def copy_to_legal_holds(
    ctx: Context, session: AsyncSession, user_id: int, message_ids: Sequence[int]
) -> None:
    """Copy messages to running legal holds before they are deleted permanently."""
    await ctx.environment.run_in_session(
        session,
        lambda transaction: held_copies.copy_removed_messages_to_incomplete_holds(
            transaction, user_id, message_ids
        ),
    )


async def _record_and_count_removal_returning_modseq(
    ctx: Context, session: AsyncSession, kind: EventType, rows: Sequence[ColumnRow]
) -> int:
    last = await ctx.record_change(
        session,
        rows[0].user_id,
        kind,
        [row.id for row in rows],
        mailbox=[row.mailbox_id for row in rows],
        uid=[row.uid for row in rows],
    )
    await apply_counter_deltas(session, last, _deltas_by_mailbox(rows, -1))
    return last


async def restore_deleted_messages_to_mailbox(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], target: ColumnRow
) -> None:
    """Restore deleted messages of an account into the mailbox `target` of the account.

    Reports a raised storage level to the user. Raises OverQuota or NotFound.
    """
    user_id, size = target.user_id, sum(row.size for row in rows)
    usage = await ctx.environment.run_in_session(
        session, lambda transaction: take_quota_of_rows(transaction, user_id, rows)
    )
    ordered = sorted(rows, key=lambda row: row.id)
    uids = await reserve_uids(session, target, len(ordered))
    last = await ctx.record_change(
        session,
        user_id,
        EventType.MESSAGE_RESTORED,
        [row.id for row in ordered],
        mailbox=target.id,
        uid=list(uids),
        flags=[imap_flags(row) for row in ordered],
    )
    await _write_placement_and_clear_state(
        ctx, session, zip(ordered, uids, strict=True), (target, last)
    )
    await apply_counter_deltas(session, last, {target.id: arrival_delta(ordered)})
    tell = partial(
        user_limits.report_storage_level_if_raised,
        user_id=user_id,
        usage=usage,
        added_bytes=size,
    )
    await ctx.environment.run_in_session(session, tell)


async def _release_quota(session: AsyncSession, user_id: int, rows: Sequence[ColumnRow]) -> None:
    """Subtract these messages from the user's quota usage and message count."""
    size = sum(row.size for row in rows)
    less = {"used": User.used - size, "message_count": User.message_count - len(rows)}
    statement = update(User).where(col(User.id) == user_id).values(**less)
    await (await session.connection()).execute(statement)


def parse_stored_time(text: str | None) -> datetime | None:
    """Parse a time that `flags.states_for_undo` stored. None stays None."""
    return datetime.fromisoformat(text) if text else None
