"""Synchronize flags and deletions between a remote mailbox and the messages here."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.imap_client import ImapSession
from mail.storage.message_flags import without_keywords
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
from resolvers.messages.bulk import flag_changes, row_changes
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk.flag_changes import FlagChanges

LEDGER_COLUMNS = {"remote_id", "flags", "message_id"}
_UPDATE_FLAGS = (
    update(core_table(FetchedMessage))
    .where(
        col(FetchedMessage.folder_id) == bindparam("folder"),
        col(FetchedMessage.remote_id) == bindparam("its"),
    )
    .values(flags=bindparam("now"))
)


async def read_known_marks(
    state: FetchState,
    remote_mailbox: OpenRemoteMailbox,
    remote_ids: Sequence[str],
    *conditions: ColumnElement[bool],
) -> set[str]:
    """Return those of these marks that the ledger has, in rows with the conditions."""
    known_marks: set[str] = set()
    for batch in batches_of_marks(remote_ids):
        statement = select(col(FetchedMessage.remote_id)).where(
            *ledger_conditions(remote_mailbox, batch), *conditions
        )
        known_marks |= {row.remote_id for row in await state.run.ctx.read(statement)}
    return known_marks


def batches_of_marks(remote_ids: Sequence[str]) -> list[Sequence[str]]:
    """Split marks into batches of the size of one statement."""
    return [
        remote_ids[at : at + MAX_MARKS_PER_STATEMENT]
        for at in range(0, len(remote_ids), MAX_MARKS_PER_STATEMENT)
    ]


def ledger_conditions(
    remote_mailbox: OpenRemoteMailbox, remote_ids: Sequence[str]
) -> tuple[Any, Any]:
    """Build the conditions on the ledger rows with these marks."""
    return col(FetchedMessage.folder_id) == remote_mailbox.id, col(FetchedMessage.remote_id).in_(
        remote_ids
    )


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
            flags_by_mark = await state.session.run_in_thread(
                remote.fetch_changed_or_all_flags, remote_mailbox.modseq
            )
            for batch in batches_of_marks(
                [remote_id for remote_id in known_marks if remote_id in flags_by_mark]
            ):
                await _copy_changed_flags(
                    state,
                    remote_mailbox,
                    {remote_id: flags_by_mark[remote_id] for remote_id in batch},
                )
        else:
            for batch in batches_of_marks(known_marks):
                await _copy_changed_flags(
                    state,
                    remote_mailbox,
                    await state.session.run_in_thread(remote.fetch_flags, batch),
                )
    if new_modseq != remote_mailbox.modseq:
        async with state.write_session_with_timeout() as unit:
            statement = update(RemoteMailbox).where(col(RemoteMailbox.id) == remote_mailbox.id)
            await (await unit.connection()).execute(statement.values(modseq=new_modseq))
            await state.record_progress(unit)


async def _copy_changed_flags(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, flags_by_mark: dict[str, frozenset[str]]
) -> None:
    """Set flags that differ from the last ones of the other server; changes made here stay."""
    statement = select(*select_columns(FetchedMessage, LEDGER_COLUMNS)).where(
        *ledger_conditions(remote_mailbox, list(flags_by_mark))
    )
    rows = [
        row
        for row in await state.run.ctx.read(statement)
        if row.flags != flags_text(flags_by_mark[row.remote_id])
    ]
    if not rows:
        return
    groups: dict[tuple[frozenset[str], frozenset[str]], list[int]] = {}
    for row in rows:
        old_flags = frozenset(row.flags.split())
        new_flags = flags_by_mark[row.remote_id] - IGNORED_FLAGS
        if row.message_id is not None:
            added_and_removed = (
                frozenset(without_keywords(new_flags, old_flags)),
                frozenset(without_keywords(old_flags, new_flags)),
            )
            groups.setdefault(added_and_removed, []).append(row.message_id)
    async with state.write_session_with_timeout() as session:
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
                    "its": row.remote_id,
                    "now": flags_text(flags_by_mark[row.remote_id]),
                }
                for row in rows
            ],
        )
        await state.record_progress(session)


def _settable_flags(flags: frozenset[str]) -> list[str]:
    return sorted(flag for flag in flags if flag_changes.is_flag_or_keyword(flag))


async def delete_messages_deleted_remotely(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, remote_marks: Sequence[str]
) -> None:
    """Delete messages here that were deleted on the other server; they stay as deleted messages.

    Messages with an invalid mark stay: after a new UIDVALIDITY, a message that the limits of size
    and age exclude is not recognized, but can still be on the server.
    """
    present, ctx = set(remote_marks), state.run.ctx
    statement = select(col(FetchedMessage.remote_id), col(FetchedMessage.message_id)).where(
        col(FetchedMessage.folder_id) == remote_mailbox.id,
        col(FetchedMessage.removed).is_(False),
        ~col(FetchedMessage.remote_id).contains(":"),
    )
    deleted_ids_by_mark = {
        row.remote_id: row.message_id
        for row in await ctx.read(statement)
        if row.remote_id not in present
    }
    mailboxes = await mailbox_loaders.load_visible_mailboxes_of_user(
        ctx, state.connector.user_id, {"path"}
    )
    paths = {mailbox.id: mailbox.path for mailbox in mailboxes}
    for batch in batches_of_marks(list(deleted_ids_by_mark)):
        message_ids = [
            key for remote_id in batch if (key := deleted_ids_by_mark[remote_id]) is not None
        ]
        async with state.write_session_with_timeout() as session:
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
            f"{remote_mailbox.name}: {len(deleted_ids_by_mark)} messages deleted on "
            "the server, and moved to the deleted messages here"
        )


async def delete_remote_messages_after_retention(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, remote_ids: Sequence[str]
) -> list[str]:
    """Delete messages on the other server that are stored here long enough; returns their marks.

    Raises RemoteFailure if the other server fails.
    """
    retention_seconds, deleted_marks = state.connector.source_retention, list[str]()
    if retention_seconds is None or state.run.is_dry_run:
        return deleted_marks
    stored_before = state.run.ctx.environment.now() - timedelta(seconds=retention_seconds)
    for batch in batches_of_marks(remote_ids):
        statement = select(col(FetchedMessage.remote_id)).where(
            *ledger_conditions(remote_mailbox, batch),
            col(FetchedMessage.removed).is_(False),
            col(FetchedMessage.may_delete_source),
            col(FetchedMessage.fetched_at) <= stored_before,
        )
        deleted_marks += [row.remote_id for row in await state.run.ctx.read(statement)]
    if deleted_marks:
        await state.session.run_in_thread(state.session.remote.delete_messages, deleted_marks)
        state.run.ctx.environment.reach_fault_point("expunged")
    return deleted_marks


async def record_remote_deletions(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, remote_ids: Sequence[str]
) -> None:
    """Record in the ledger that these messages were deleted on the other server."""
    for batch in batches_of_marks(remote_ids):
        async with state.write_session_with_timeout() as session:
            await _set_removed_in_ledger(session, remote_mailbox, batch)
            state.counts.deleted_remote_count += len(batch)
            await state.record_progress(session)
    state.run.add_log_line(
        f"{remote_mailbox.name}: {len(remote_ids)} messages deleted on the server"
    )


async def _set_removed_in_ledger(
    session: AsyncSession, remote_mailbox: OpenRemoteMailbox, remote_ids: Sequence[str]
) -> None:
    statement = update(FetchedMessage).where(*ledger_conditions(remote_mailbox, remote_ids))
    await (await session.connection()).execute(statement.values(removed=True))
