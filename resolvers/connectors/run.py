"""Run a connector: fetch new messages mailbox by mailbox.

A transaction stores messages together with their ledger rows. So an interrupted run continues
after its last transaction, no message is stored twice, and no message is deleted on the other
server before it is stored here.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from mail.connectors import mailbox_mapping
from mail.connectors.imap_client import ImapSession
from mail.connectors.mailbox_mapping import MailboxMapping, MappingRules
from mail.connectors.remote_server import (
    ConnectorStage,
    OpenedMailbox,
    RemoteFailure,
    RemoteMessage,
)
from mail.mailboxes.paths import INBOX
from mail.network.outbound_http import NetworkPolicy
from mail.sieve.execution.regex_groups import compile_regex
from mail.text.bounded_regex import BoundedRegex
from models.connectors import ConnectorProtocol, FetchedMessage, RemoteMailbox
from models.mailboxes.tables import SpecialUse
from models.runtime.clock_steps import is_plausible_wait_running
from models.store.columns import ColumnRow, select_columns
from resolvers.connectors import credentials, message_storage, one_time_run, synchronization
from resolvers.connectors.one_time_imports import one_time_import_of
from resolvers.connectors.run_state import (
    ActiveRun,
    FetchState,
    OpenRemoteMailbox,
    RunCounts,
    require_no_worker_stop,
)
from resolvers.transfer import import_mailboxes, import_writer

# until the next run that listens
RELISTEN_DELAY = timedelta(seconds=1)
RELISTEN_DELAY_AFTER_FAILURE = timedelta(minutes=1)
MAX_IDLE_SECONDS = 240.0  # then the end of listening is checked again
# Seconds before a fetch, if the server reports one change after another and no new message
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0


async def fetch_and_synchronize(
    run: "ActiveRun", network_policy: NetworkPolicy, ssl_context: Any
) -> None:
    """Fetch new messages.

    Raises RemoteFailure if the other server fails, RequestError if storing fails, and
    RunInterrupted after the current group of messages if the worker stops.
    """
    ctx, connector = run.ctx, run.connector
    if connector.protocol in (ConnectorProtocol.ARCHIVE, ConnectorProtocol.USER):
        await one_time_run.run_one_time_import(run)
        return
    run.add_log_line(f"connecting to {connector.host}, port {connector.port}")
    async with credentials.open_session_of_connector(
        ctx.environment, connector, (network_policy, ssl_context)
    ) as session:
        run.add_log_line("signed in")
        writer = await import_writer.load_initial_import_state(
            ctx, connector.user_id, None, run.row.id
        )
        writer.subscribes = connector.subscribe_all
        run_row = run.row  # continues its counts
        counts = RunCounts(0, run_row.imported_count, 0, run_row.deleted_remote_count, run_row.size)
        state = FetchState(
            run,
            session,
            writer,
            counts,
            message_filter=one_time_import_of(connector).message_filter,
        )
        mapped_mailboxes = await _list_and_map_remote_mailboxes(state)
        deleted_marks: list[tuple[OpenRemoteMailbox, list[str]]] = []
        for mapped in mapped_mailboxes:
            remote_mailbox, remote_ids = await _fetch_and_synchronize_mailbox(state, mapped)
            if marks_to_delete := await synchronization.delete_remote_messages_after_retention(
                state, remote_mailbox, remote_ids
            ):
                deleted_marks.append((remote_mailbox, marks_to_delete))
        inbox = next(
            (
                mailbox
                for mailbox in mapped_mailboxes
                if mailbox_mapping.remote_path(mailbox.remote_mailbox).upper() == INBOX
            ),
            None,
        )
        if run.options.idle and run.may_listen and inbox:
            await _listen_and_fetch_inbox(state, inbox)
    for remote_mailbox, remote_ids in deleted_marks:  # POP3 deletes at the end of a session
        await synchronization.record_remote_deletions(state, remote_mailbox, remote_ids)
    await _log_and_record_totals(state)


async def _log_and_record_totals(state: FetchState) -> None:
    state.run.add_log_line(state.counts.log_line())
    async with state.write_session_with_timeout() as unit:
        await state.record_progress(unit, folder=None)


async def _list_and_map_remote_mailboxes(state: FetchState) -> list[MailboxMapping]:
    """Return the remote mailboxes that are fetched, with their mailboxes here."""
    row, options, remote = state.connector, state.options, state.session.remote
    listed = await state.session.run_in_thread(remote.list_mailboxes)
    if options.subscribed and isinstance(remote, ImapSession):
        subscribed_names = await state.session.run_in_thread(remote.list_subscribed)
        listed = [
            mailbox
            for mailbox in listed
            if mailbox.raw_name in subscribed_names or mailbox.raw_name.upper() == b"INBOX"
        ]
    local_paths = await import_mailboxes.load_paths_by_special_use(state.run.ctx)
    local_paths.pop(SpecialUse.INBOX, None)
    rewrites = [
        (compile_regex(rewrite["pattern"], ignore_case=True), rewrite["replacement"])
        for rewrite in row.folder_rewrites
    ]
    rules = MappingRules(
        BoundedRegex(row.exclude, allow_slashes=False) if row.exclude else None,
        options.include,
        options.include_patterns,
        options.exclude_patterns,
        rewrites,
        row.auto_map_folders,
        None if row.target_folder == INBOX and not row.is_one_time else row.target_folder,
    )
    mappings = mailbox_mapping.select_and_map_mailboxes(listed, rules, local_paths)
    state.run.add_log_line(f"{len(listed)} mailboxes found, {len(mappings)} selected")
    return mappings


class _SynchronizedMailbox(NamedTuple):
    """A remote mailbox with the marks of all its messages."""

    remote_mailbox: OpenRemoteMailbox
    marks: list[str]


async def _fetch_and_synchronize_mailbox(
    state: FetchState, mapped: MailboxMapping, *, is_repeat: bool = False
) -> _SynchronizedMailbox:
    """Fetch new messages and changes of a mailbox. Returns it with the marks of all its messages.

    With `is_repeat`, messages seen before are not counted once more.
    """
    require_no_worker_stop()
    session, remote = state.session, state.session.remote
    needs_write = state.connector.source_retention is not None and not state.run.is_dry_run
    opened = await session.run_in_thread(
        lambda: remote.open_mailbox(mapped.remote_mailbox, writable=needs_write)
    )
    remote_mailbox = await _read_or_create_remote_mailbox(state, mapped, opened)
    remote_ids = await session.run_in_thread(remote.list_message_ids)
    if not isinstance(remote, ImapSession) and not state.run.is_dry_run:
        await _invalidate_reused_marks(state, remote_mailbox, remote_ids)
    known_marks = await synchronization.read_known_marks(state, remote_mailbox, remote_ids)
    new_marks = [remote_id for remote_id in remote_ids if remote_id not in known_marks]
    heads = await session.run_in_thread(remote.fetch_metadata, new_marks)
    heads_to_fetch = _heads_within_size_and_age_limits(state, remote_mailbox, heads)
    state.counts.seen_count += len(new_marks) if is_repeat else len(remote_ids)
    state.counts.skipped_count += len(heads) - len(heads_to_fetch)
    if new_marks:
        state.run.add_log_line(
            f"{remote_mailbox.name}: {len(remote_ids)} messages, {len(heads_to_fetch)} to fetch"
        )
    if state.run.is_dry_run:
        state.counts.imported_count += len(heads_to_fetch)
        return _SynchronizedMailbox(remote_mailbox, remote_ids)
    async with aclosing(session.stream_messages(heads_to_fetch)) as groups:
        async for heads_and_bytes in groups:
            await message_storage.store_fetched_messages(state, remote_mailbox, heads_and_bytes)
    await synchronization.copy_remote_flag_changes(
        state, remote_mailbox, [remote_id for remote_id in remote_ids if remote_id in known_marks]
    )
    if state.connector.mirror_deletes:
        await synchronization.delete_messages_deleted_remotely(state, remote_mailbox, remote_ids)
    return _SynchronizedMailbox(remote_mailbox, remote_ids)


async def _read_or_create_remote_mailbox(
    state: FetchState, mapped: MailboxMapping, opened: OpenedMailbox
) -> OpenRemoteMailbox:
    """Read the row of a remote mailbox, or create it.

    If UIDVALIDITY has changed, the marks of the ledger are invalidated; digests identify the
    messages then.
    """
    ctx = state.run.ctx
    wire_name = mapped.remote_mailbox.raw_name.decode("latin-1")
    name = mailbox_mapping.remote_path(mapped.remote_mailbox)
    is_this_mailbox = (
        col(RemoteMailbox.connector_id) == state.connector.id,
        col(RemoteMailbox.name) == wire_name,
    )
    if state.run.is_dry_run:
        rows = await ctx.read(select(*select_columns(RemoteMailbox)).where(*is_this_mailbox))
        row = rows[0] if rows and rows[0].validity == opened.uid_validity else None
        return OpenRemoteMailbox(row.id if row else 0, name, mapped, opened, row is None, 0, {})
    ctx.clear_loaded()  # mailboxes can have been created since
    async with state.write_session_with_timeout() as unit:
        connection = await unit.connection()
        row = (
            await connection.execute(select(*select_columns(RemoteMailbox)).where(*is_this_mailbox))
        ).first()
        mailbox_id = ctx.environment.new_id() if row is None else row.id
        if row is None:
            new = {
                "id": mailbox_id,
                "connector_id": state.connector.id,
                "name": wire_name,
                "modseq": 0,
            }
            await connection.execute(
                insert(RemoteMailbox), [{**new, "validity": opened.uid_validity}]
            )
        elif row.validity != opened.uid_validity:
            state.run.add_log_line(f"{name}: the server has numbered its messages anew")
            await _invalidate_marks(state, connection, col(FetchedMessage.folder_id) == row.id)
            statement = update(RemoteMailbox).where(col(RemoteMailbox.id) == row.id)
            await connection.execute(statement.values(validity=opened.uid_validity, modseq=0))
        await state.record_progress(unit, folder=name)
    is_same_numbering = row is not None and row.validity == opened.uid_validity
    renumbered = await _read_renumbered_by_digest(state, mailbox_id) if row is not None else {}
    return OpenRemoteMailbox(
        mailbox_id,
        name,
        mapped,
        opened,
        row is None,
        row.modseq if row and is_same_numbering else 0,
        renumbered,
    )


async def _invalidate_marks(
    state: FetchState, connection: AsyncConnection, *conditions: ColumnElement[bool]
) -> None:
    """Make the marks of these ledger rows invalid, so that digests identify their messages.

    The new marks are unique: a server can number its messages again as it did before.
    """
    invalid_mark = f"{state.run.ctx.environment.new_id()}:" + col(FetchedMessage.remote_id)
    statement = update(FetchedMessage).where(
        *conditions, ~col(FetchedMessage.remote_id).contains(":")
    )
    await connection.execute(statement.values(remote_id=invalid_mark))


async def _invalidate_reused_marks(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, remote_ids: Sequence[str]
) -> None:
    """Make marks invalid if a message on the server has the UIDL of one that was deleted there.

    A server may reuse the UIDL of a deleted message (RFC 1939, section 7).
    """
    reused = await synchronization.read_known_marks(
        state, remote_mailbox, remote_ids, col(FetchedMessage.removed).is_(True)
    )
    if not reused:
        return
    async with state.write_session_with_timeout() as session:
        connection = await session.connection()
        for batch in synchronization.batches_of_marks(sorted(reused)):
            is_reused = synchronization.ledger_conditions(remote_mailbox, batch)
            await _invalidate_marks(state, connection, *is_reused)
        await state.record_progress(session)
    remote_mailbox.renumbered = await _read_renumbered_by_digest(state, remote_mailbox.id)


async def _read_renumbered_by_digest(
    state: FetchState, remote_mailbox_id: int
) -> dict[str, list[ColumnRow]]:
    """Return the ledger rows with invalid marks, by digest."""
    names = ("remote_id", "digest", "message_id", "may_delete_source")
    statement = select(*select_columns(FetchedMessage, names)).where(
        col(FetchedMessage.folder_id) == remote_mailbox_id,
        col(FetchedMessage.remote_id).contains(":"),
    )
    renumbered: dict[str, list[ColumnRow]] = {}
    for row in await state.run.ctx.read(statement):
        renumbered.setdefault(row.digest, []).append(row)
    return renumbered


def _heads_within_size_and_age_limits(
    state: FetchState, remote_mailbox: OpenRemoteMailbox, heads: Sequence[RemoteMessage]
) -> list[RemoteMessage]:
    """Return the messages that fit the size and age limits of the connector."""
    row, options, now = state.connector, state.options, state.run.ctx.environment.now()
    max_size = state.run.ctx.environment.options.message_max_size
    too_large = sum(head.size > max_size for head in heads)
    if too_large:
        state.run.add_log_line(
            f"{remote_mailbox.name}: skipped {too_large} messages larger than {max_size} bytes"
        )
    min_size, max_allowed = options.min_size, min(max_size, options.max_size or max_size)

    def fits(received_at: datetime | None) -> bool:
        age = (now - received_at).total_seconds() if received_at else options.min_age
        return options.min_age <= age <= (age if row.max_age is None else row.max_age)

    return [
        head for head in heads if min_size <= head.size <= max_allowed and fits(head.received_at)
    ]


async def _listen_and_fetch_inbox(state: FetchState, inbox: MailboxMapping) -> None:
    """Fetch what arrives in INBOX at once (IMAP IDLE), until the next run is due."""
    row, environment, remote = state.connector, state.run.ctx.environment, state.session.remote
    if state.run.is_dry_run or row.interval is None or not isinstance(remote, ImapSession):
        return
    if "IDLE" not in remote.capabilities:
        state.run.add_log_line("the server does not support IDLE")
        return
    until = environment.now() + timedelta(seconds=row.interval)
    has_changes, pause = True, 0.0  # the first fetch also selects the mailbox
    state.run.next_run_delay = RELISTEN_DELAY
    while is_plausible_wait_running(
        until, now := environment.now(), timedelta(seconds=row.interval)
    ):
        seconds_left = (until - now).total_seconds()
        imported_count = state.counts.imported_count
        if has_changes:
            await _fetch_and_synchronize_mailbox(state, inbox, is_repeat=True)
            state.session.connection.stage = ConnectorStage.IDLE
            await _log_and_record_totals(state)
        require_no_worker_stop()
        state.run.set_listening(is_listening=True)
        listens_since = time.monotonic()
        try:
            has_changes = await state.session.run_in_thread(
                remote.wait_for_changes, min(seconds_left, MAX_IDLE_SECONDS)
            )
            has_imported = state.counts.imported_count > imported_count
            if has_imported or time.monotonic() - listens_since > MAX_PAUSE:
                pause = 0.0
            if has_changes:
                await asyncio.sleep(min(pause, seconds_left))
                pause = min(2 * pause or MIN_PAUSE, MAX_PAUSE)
        except RemoteFailure as problem:  # servers close idle connections
            state.run.add_log_line(f"IDLE ended: {problem.message}")
            state.run.next_run_delay = RELISTEN_DELAY_AFTER_FAILURE
            break
        finally:
            state.run.set_listening(is_listening=False)
