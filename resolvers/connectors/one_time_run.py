"""Run a one-time import: mail of an archive or of another account, group by group.

A transaction stores messages together with the checkpoint, so that an interrupted run continues
after its last group.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.archives.mail_sources import (
    MailSource,
    inspect_mail_source,
    read_source_messages_and_skips,
)
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.storage import message_flags, message_open
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.message_content import StoredMessage, read_all
from mail.text.storable_text import make_storable
from models.connectors import ConnectorProtocol
from models.errors import NotFound, OverQuota
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.outages import storage_failure
from models.transfer import ImportArchive
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.connectors.one_time_imports import OneTimeImport, one_time_import_of
from resolvers.connectors.run_state import ActiveRun, RunCounts, require_no_worker_stop
from resolvers.context import Context
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer import (
    export_writer,
    import_archives,
    import_mailboxes,
    import_writer,
)
from resolvers.transfer.import_writer import ImportableMessage, SourceReader
from resolvers.transfer.running_import import NO_MESSAGE_REASON, ImportOutcome, RunningImport
from resolvers.viewer import Viewer

MESSAGE_COLUMNS = frozenset(
    {"id", "blob_id", "mime_structure", "size", "received_at", "envelope_from", "keywords",
     *message_flags.SYSTEM_FLAGS}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreparedImportMessage:
    """A message of the source; `prepared` is None if it is not stored."""

    source_message: SourceMessage
    prepared: ImportableMessage | None


@dataclass
class OneTimeImportState:
    """A run of a one-time import with its open source."""

    run: "ActiveRun"
    writer: RunningImport
    settings: OneTimeImport
    checkpoint: dict[str, Any]
    counts: RunCounts
    message_filter: MessageConditions | None = None  # applied to each message in memory
    # mailbox paths here by special use
    local_paths: Mapping[SpecialUse, str] = field(default_factory=dict)
    # special use by path in the source
    source_uses: Mapping[str, SpecialUse] = field(default_factory=dict)

    def with_target_path(self, source_message: SourceMessage) -> SourceMessage:
        """Return the message with the path of the mailbox here that it is stored in."""
        if self.settings.below is not None:
            path = f"{self.settings.below}/{source_message.folder}"
            return replace(source_message, folder=path, special_use=None)
        special_use = self.source_uses.get(source_message.folder)
        return replace(
            source_message,
            folder=self.local_paths.get(special_use, source_message.folder)
            if special_use
            else source_message.folder,
        )


async def run_one_time_import(run: "ActiveRun") -> None:
    """Import all messages.

    Raises RemoteFailure if the source can't be read or the account is full, RequestError.
    """
    row, settings = run.row, one_time_import_of(run.connector)
    begun_id = (row.checkpoint or {}).get("begun") or run.ctx.environment.new_id()
    writer = await import_writer.load_initial_import_state(
        run.ctx, run.connector.user_id, None, begun_id
    )
    writer.subscribes = settings.subscribe
    checkpoint = {**(row.checkpoint or {}), "begun": begun_id}
    tally = RunCounts(row.seen_count, row.imported_count, row.skipped_count, size=row.size)
    state = OneTimeImportState(
        run,
        writer,
        settings,
        checkpoint,
        tally,
        local_paths=await import_mailboxes.load_paths_by_special_use(writer.ctx),
    )
    if run.connector.protocol is ConnectorProtocol.USER:
        await _import_mail_of_source_account(state)
    else:
        await _import_archive(state)
    run.add_log_line(state.counts.log_line())


async def _import_archive(state: OneTimeImportState) -> None:
    """Import an archive, from the checkpoint on."""
    environment, path = state.writer.ctx.environment, state.settings.path
    is_of_run = col(ImportArchive.task_id) == state.run.row.id
    async with import_archives.open_server_file_or_archive_copy(
        state.writer.ctx, path, is_of_run
    ) as file:
        source_archive = await asyncio.to_thread(_open_archive, file, environment)
        if (
            path is not None
            and state.checkpoint.get("stamp", source_archive.stamp) != source_archive.stamp
        ):
            raise RemoteFailure(ConnectorStage.FETCH, "The file changed after the run began.")
        state.checkpoint["stamp"] = source_archive.stamp
        if source_archive.account:
            state.source_uses = {
                mailbox["path"]: use
                for mailbox in source_archive.account.mailboxes
                for use in SpecialUse
                if mailbox.get("specialUse") == use
            }
        state.message_filter = state.settings.message_filter
        reading = SourceReader(
            read_source_messages_and_skips(source_archive, state.checkpoint.get("after"))
        )
        while group := await asyncio.to_thread(_read_next_source_messages, reading):
            await _store_source_messages(state, group)
            require_no_worker_stop()
        if reading.problem:
            raise RemoteFailure(ConnectorStage.FETCH, reading.problem)
        has_message = state.checkpoint.get("found") or state.counts.imported_count
        if not has_message and source_archive.account is None:
            raise RemoteFailure(ConnectorStage.FETCH, NO_MESSAGE_REASON)


def _open_archive(file: Any, environment: Environment) -> MailSource:
    """Open an archive of messages. Raises RemoteFailure if it can't be read."""
    try:
        return inspect_mail_source(file, environment.options.message_max_size)
    except (UnusableMessageError, OSError) as problem:
        if storage_failure(problem):
            raise
        raise RemoteFailure(ConnectorStage.FETCH, f"The archive can't be read: {problem}") from None


def _read_next_source_messages(reading: SourceReader) -> list[SourceMessage]:
    """Read the next batch of the source. Raises RemoteFailure if the archive can't be read."""
    try:
        return reading.read_batch()
    except OSError as problem:
        if storage_failure(problem):
            raise
        raise RemoteFailure(
            ConnectorStage.FETCH, f"The archive can't be read: {problem.strerror}."
        ) from None


async def _import_mail_of_source_account(state: OneTimeImportState) -> None:
    """Import the mail that another account had when the run began."""
    environment, user_id = state.writer.ctx.environment, state.settings.user or 0
    source_ctx = Context(environment, Viewer(user_id, Role.USER, frozenset({Scope.FULL})))
    statement = select(col(User.id)).where(col(User.id) == user_id, col(User.deleted_at).is_(None))
    if not await source_ctx.read(statement):
        raise RemoteFailure(ConnectorStage.FETCH, "The source account was deleted.")
    selection = MessageSelector(conditions=state.settings.message_filter or MessageConditions())
    after = int(state.checkpoint.get("after") or 0)
    message_ids = await export_writer.load_visible_message_ids(source_ctx, user_id, selection)
    message_ids = [key for key in message_ids if after < key < state.writer.first_new_id]
    async with aclosing(_read_message_groups(state, source_ctx, message_ids)) as groups:
        async for group in groups:
            await _store_source_messages(state, group)
            require_no_worker_stop()


async def _read_message_groups(
    state: OneTimeImportState, source_ctx: Context, message_ids: Sequence[int]
) -> AsyncGenerator[list[SourceMessage]]:
    """Yield messages of an account in groups for one transaction, without deleted ones."""
    for start in range(0, len(message_ids), import_writer.MAX_BATCH_MESSAGES):
        batch_ids = message_ids[start : start + import_writer.MAX_BATCH_MESSAGES]
        rows = await source_ctx.read(
            select(
                *select_columns(Message, MESSAGE_COLUMNS),
                col(Mailbox.path),
                col(Mailbox.special_use),
            )
            .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
            .where(col(Message.id).in_(batch_ids), col(Message.deleted_at).is_(None))
            .order_by(col(Message.id))
        )
        state.source_uses = {
            **state.source_uses,
            **{row.path: row.special_use for row in rows if row.special_use},
        }
        group, group_bytes = list[SourceMessage](), 0
        for row, stored in zip(
            rows,
            await message_open.open_messages_and_log_damage(source_ctx.environment, rows),
            strict=True,
        ):
            if (source_message := await _source_message_from_row(row, stored)) is None:
                continue
            if group and group_bytes + row.size > import_writer.MAX_BATCH_BYTES:
                yield group
                group, group_bytes = [], 0
            group.append(source_message)
            group_bytes += row.size
        if group:
            yield group


async def _source_message_from_row(row: ColumnRow, stored: StoredMessage) -> SourceMessage | None:
    """Return a stored message of the source account with its bytes; None if it was deleted.

    A damaged message has a skip reason instead of bytes.
    """
    message_without_bytes = SourceMessage(
        f"message {row.id} of {row.path}", row.path, str(row.id), 0
    )
    try:
        raw = await read_all(stored.stream_raw())
    except CorruptBlob:
        return message_without_bytes.with_skip_reason("The message is damaged.")
    except NotFound:
        return None  # deleted while it was read
    facts = {"received_at": row.received_at, "sender": row.envelope_from}
    return message_without_bytes.with_message(raw, **facts, flags=message_flags.imap_flags(row))


async def _store_source_messages(state: OneTimeImportState, group: Sequence[SourceMessage]) -> None:
    """Store messages; if the account is full, as many as fit, and then raise RemoteFailure."""
    prepared_messages = [
        await _parse_and_filter_message(state, source_message) for source_message in group
    ]
    try:
        await _store_messages_and_checkpoint(state, prepared_messages)
    except OverQuota:
        for message in prepared_messages:
            try:
                await _store_messages_and_checkpoint(state, [message])
            except OverQuota as full:
                raise RemoteFailure(ConnectorStage.STORE, full.message) from None
    except NotFound:
        raise RemoteFailure(
            ConnectorStage.STORE, "The account or a mailbox of it was deleted."
        ) from None


async def _parse_and_filter_message(
    state: OneTimeImportState, source_message: SourceMessage
) -> PreparedImportMessage:
    """Parse a message. If it can't be stored, the reason is added to the log."""
    state.writer.outcome = ImportOutcome()
    parsed = None
    if state.message_filter is not None and source_message.raw is not None:
        parsed = await import_writer.parse_message_without_own_results(
            state.writer.ctx.environment, source_message.raw
        )
        if not await filter_match.matches_unstored_message(
            state.message_filter, source_message, parsed, state.writer.ctx.environment.now()
        ):
            return PreparedImportMessage(source_message, None)
    prepared = await import_writer.create_mailbox_and_prepare_message(
        state.writer, state.with_target_path(source_message), parsed
    )
    for name, reason in state.writer.outcome.skipped:
        state.run.add_log_line(f"{name}: {reason}")
    return PreparedImportMessage(source_message, prepared)


async def _store_messages_and_checkpoint(
    state: OneTimeImportState, prepared_messages: Sequence[PreparedImportMessage]
) -> None:
    """Store messages and the checkpoint in one transaction. Raises OverQuota."""
    writer = state.writer
    counts_before = state.counts
    last_message = prepared_messages[-1].source_message
    prepared = [message.prepared for message in prepared_messages if message.prepared]
    counts = RunCounts(
        counts_before.seen_count + len(prepared_messages),
        counts_before.imported_count + len(prepared),
        counts_before.skipped_count + len(prepared_messages) - len(prepared),
        size=counts_before.size
        + sum(len(message.source_message.raw or b"") for message in prepared_messages),
    )
    checkpoint = {**state.checkpoint, "after": last_message.checkpoint}
    if any(message.source_message.raw is not None for message in prepared_messages):
        checkpoint["found"] = True

    async def insert_messages_and_record_progress(
        stored_blobs: Sequence[StoredMessageBlobs],
    ) -> None:
        async with writer.ctx.write_session(writer.user.id) as session:
            if prepared:
                await import_writer.insert_messages_with_flags(
                    writer, session, prepared, stored_blobs
                )
            facts = {
                "stage": ConnectorStage.STORE,
                "folder": make_storable(last_message.folder),
                "checkpoint": checkpoint,
            }
            await state.run.require_lease_and_record_progress(session, **facts, **asdict(counts))

    await import_writer.store_blobs_then_call_with_one_retry(
        writer, prepared, insert_messages_and_record_progress
    )
    state.counts, state.checkpoint = counts, checkpoint
    writer.ctx.environment.reach_fault_point("messages imported")
