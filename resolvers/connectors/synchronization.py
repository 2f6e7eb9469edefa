"""Synchronize flags and deletions between a remote mailbox and the messages here."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.imap_client import ImapSession
from models.connectors import FetchedMessage, RemoteMailbox
from models.store.columns import ColumnRow, core_table, select_columns
from resolvers.connectors.run_state import (
    IGNORED_FLAGS,
    MAX_MARKS_PER_STATEMENT,
    FetchState,
    OpenRemoteMailbox,
    flags_text,
)
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk import row_changes
from resolvers.messages.bulk.row_changes import FlagChanges

LEDGER_COLUMNS = {"mark", "flags", "message_id"}
_UPDATE_FLAGS = (
    update(core_table(FetchedMessage))
    .where(
        col(FetchedMessage.folder_id) == bindparam("folder"),
        col(FetchedMessage.mark) == bindparam("its"),
    )
    .values(flags=bindparam("now"))
)


async def read_known_marks(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, marks: Sequence[str]
) -> set[str]:
    """Return the marks that the ledger has."""
    known_marks: set[str] = set()
    for batch in batches_of_marks(marks):
        statement = select(col(FetchedMessage.mark)).where(
            *_ledger_conditions(remote_mailbox, batch)
        )
        known_marks |= {row.mark for row in await state.run.ctx.read(statement)}
    return known_marks


def batches_of_marks(marks: Sequence[str]) -> list[Sequence[str]]:
    """Split marks into batches of the size of one statement."""
    return [
        marks[at : at + MAX_MARKS_PER_STATEMENT]
        for at in range(0, len(marks), MAX_MARKS_PER_STATEMENT)
    ]


def _ledger_conditions(remote_mailbox: OpenRemoteMailbox, marks: Sequence[str]) -> tuple[Any, Any]:
    return col(FetchedMessage.folder_id) == remote_mailbox.id, col(FetchedMessage.mark).in_(marks)


async def copy_remote_flag_changes(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, known_marks: Sequence[str]
) -> None:
    """Apply flag changes of the other server since the last run to the messages here.

    `known_marks` are the messages that were known before this run.
    """
    remote, new_modseq = state.session.remote, remote_mailbox.opened.modseq
    if not isinstance(remote, ImapSession) or state.options.no_flags:
        return
    if known_marks and not (new_modseq and new_modseq == remote_mailbox.modseq):
        if new_modseq and remote_mailbox.modseq:
            flags_by_mark = await state.session.run(
                remote.fetch_changed_flags, remote_mailbox.modseq
            )
            for batch in batches_of_marks([mark for mark in known_marks if mark in flags_by_mark]):
                await _copy_changed_flags(
                    state, remote_mailbox, {mark: flags_by_mark[mark] for mark in batch}
                )
        else:
            for batch in batches_of_marks(known_marks):
                await _copy_changed_flags(
                    state, remote_mailbox, await state.session.run(remote.fetch_flags, batch)
                )
    if new_modseq != remote_mailbox.modseq:
        async with state.write_session() as unit:
            statement = update(RemoteMailbox).where(col(RemoteMailbox.id) == remote_mailbox.id)
            await (await unit.connection()).execute(statement.values(modseq=new_modseq))
            await state.record_progress(unit)


async def _copy_changed_flags(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, flags_by_mark: dict[str, frozenset[str]]
) -> None:
    """Set flags that differ from the last ones of the other server; changes made here stay."""
    statement = select(*select_columns(FetchedMessage, LEDGER_COLUMNS)).where(
        *_ledger_conditions(remote_mailbox, list(flags_by_mark))
    )
    rows = [
        row
        for row in await state.run.ctx.read(statement)
        if row.flags != flags_text(flags_by_mark[row.mark])
    ]
    if not rows:
        return
    groups: dict[tuple[frozenset[str], frozenset[str]], list[int]] = {}
    for row in rows:
        old_flags, new_flags = frozenset(row.flags.split()), flags_by_mark[row.mark] - IGNORED_FLAGS
        if row.message_id is not None:
            groups.setdefault((new_flags - old_flags, old_flags - new_flags), []).append(
                row.message_id
            )
    async with state.write_session() as session:
        connection = await session.connection()
        for (added, removed), message_ids in groups.items():
            message_rows = await row_changes.load_rows_in_transaction(session, message_ids)
            changes = FlagChanges.from_flag_names(
                {}, added=_settable_flags(added), removed=_settable_flags(removed)
            )
            if message_rows and not changes.is_empty:
                await bulk_flags.change_flags(state.run.ctx, session, message_rows, changes)
        await connection.execute(
            _UPDATE_FLAGS,
            [
                {
                    "folder": remote_mailbox.id,
                    "its": row.mark,
                    "now": flags_text(flags_by_mark[row.mark]),
                }
                for row in rows
            ],
        )
        await state.record_progress(session)


def _settable_flags(flags: frozenset[str]) -> list[str]:
    return sorted(flag for flag in flags if row_changes.is_flag_or_keyword(flag))


async def archive_messages_deleted_remotely(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, remote_marks: Sequence[str]
) -> None:
    """Delete messages here that were deleted on the other server; they stay as deleted messages."""
    present, ctx = set(remote_marks), state.run.ctx
    statement = select(col(FetchedMessage.mark), col(FetchedMessage.message_id)).where(
        col(FetchedMessage.folder_id) == remote_mailbox.id, col(FetchedMessage.removed).is_(False)
    )
    deleted_ids_by_mark = {
        row.mark: row.message_id for row in await ctx.read(statement) if row.mark not in present
    }
    mailboxes = await mailbox_loaders.load_all_of_user(ctx, state.connector.user_id, {"path"})
    paths = {box.id: box.path for box in mailboxes}
    for batch in batches_of_marks(list(deleted_ids_by_mark)):
        message_ids = [key for mark in batch if (key := deleted_ids_by_mark[mark]) is not None]
        async with state.write_session() as session:
            rows: Sequence[ColumnRow] = (
                await row_changes.load_rows_in_transaction(session, message_ids)
                if message_ids
                else []
            )
            rows = [row for row in rows if row.mailbox_id in paths]
            if rows:
                await row_changes.move_to_deleted(ctx, session, rows, paths)
            await _set_removed_in_ledger(session, remote_mailbox, batch)
            await state.record_progress(session)
    if deleted_ids_by_mark:
        state.run.add_log_line(
            f"{remote_mailbox.name}: {len(deleted_ids_by_mark)} are gone there, and put away here"
        )


async def delete_remote_after_retention(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, marks: Sequence[str]
) -> list[str]:
    """Delete messages on the other server that are stored here long enough; returns their marks.

    Raises RemoteFailure if the other server fails.
    """
    retention_seconds, deleted_marks = state.connector.source_retention, list[str]()
    if retention_seconds is None or state.run.is_dry_run:
        return deleted_marks
    stored_before = state.run.ctx.environment.now() - timedelta(seconds=retention_seconds)
    for batch in batches_of_marks(marks):
        statement = select(col(FetchedMessage.mark)).where(
            *_ledger_conditions(remote_mailbox, batch),
            col(FetchedMessage.removed).is_(False),
            col(FetchedMessage.safe),
            col(FetchedMessage.fetched_at) <= stored_before,
        )
        deleted_marks += [row.mark for row in await state.run.ctx.read(statement)]
    if deleted_marks:
        await state.session.run(state.session.remote.delete_messages, deleted_marks)
        state.run.ctx.environment.reach_fault_point("expunged")
    return deleted_marks


async def record_remote_deletions(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, marks: Sequence[str]
) -> None:
    """Record in the ledger that these messages were deleted on the other server."""
    for batch in batches_of_marks(marks):
        async with state.write_session() as session:
            await _set_removed_in_ledger(session, remote_mailbox, batch)
            state.counts.deleted_remote_count += len(batch)
            await state.record_progress(session)
    state.run.add_log_line(f"{remote_mailbox.name}: {len(marks)} deleted there")


async def _set_removed_in_ledger(
    session: AsyncSession, remote_mailbox: OpenRemoteMailbox, marks: Sequence[str]
) -> None:
    statement = update(FetchedMessage).where(*_ledger_conditions(remote_mailbox, marks))
    await (await session.connection()).execute(statement.values(removed=True))
