"""Write the content of an account export: its record and its messages, in chunks."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlmodel import col

from mail.archives import archive_writer
from mail.archives.archive_writer import ArchiveChunk, ArchiveState, ExportFormat
from mail.archives.json_lines import ExportedMessage, MessageRecord
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.message_content import StoredMessage, read_all
from mail.storage.message_flags import SYSTEM_FLAGS, imap_flags
from mail.storage.message_open import open_submission
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, MailboxAnnotation
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from resolvers.access import is_visible_or_managed, require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import content
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.transfer import export_settings, scheduled_messages

MAX_CHUNK_BYTES = 8 << 20  # bytes; a larger message has a chunk of its own
MAX_CHUNK_MESSAGES = 200
MESSAGE_COLUMNS = frozenset(
    {"id", "mailbox_id", "size", "sha256", "received_at", "expires_at", "keywords",
     "public_metadata", "envelope_from", "envelope_to", *SYSTEM_FLAGS}
)  # fmt: skip
SORT_COLUMNS = (col(Message.listed_at), col(Message.id))

# A count of the listed IDs, or sort time and ID of the last message. Stored in checkpoints.
ExportPosition = int | list[Any] | dict[str, Any] | None


@dataclass(slots=True)
class ExportChunk:
    """A chunk of an export, the position after it, and the messages that could not be read."""

    archive_chunk: ArchiveChunk
    next_position: ExportPosition
    done_count: int = 0
    unreadable_messages: list[str] = field(default_factory=list)


class AccountRecordChunk(NamedTuple):
    """The first chunk of an export, and the number of messages that follow."""

    archive_chunk: ArchiveChunk
    message_count: int


async def encode_account_record(
    ctx: Context,
    export_format: ExportFormat,
    archive_state: ArchiveState,
    task_order: dict[str, Any],
    passphrase: str | None = None,
) -> AccountRecordChunk:
    """Encode the account's record, and count the messages to export.

    A passphrase encrypts the passwords of connectors. Without it they are left out.
    """
    user_id = ctx.viewer.user_id
    total = (
        len(task_order["ids"])
        if task_order["ids"] is not None
        else await _count_messages_to_export(ctx)
    )
    names = {"id", "path", "special_use", "hidden", "subscribed", "encrypt_messages"}
    names |= {"retention", "retention_inherited", "uid_validity", "uid_next"}
    rows = await mailbox_loaders.load_visible_mailboxes_of_user(ctx, user_id, names)
    statement = select(*select_columns(MailboxAnnotation)).where(
        col(MailboxAnnotation.mailbox_id).in_([row.id for row in rows])
    )
    notes: dict[int, dict[str, str]] = {}
    if task_order["settings"]:
        for row in await ctx.read(statement):
            notes.setdefault(row.mailbox_id, {})[row.key] = row.value
    mailbox_records = [
        {
            "path": row.path,
            "specialUse": row.special_use,
            "hidden": row.hidden,
            "subscribed": row.subscribed,
            "retention": row.retention,
            "retentionInherited": row.retention_inherited,
            "encryptMessages": row.encrypt_messages,
            "uidValidity": row.uid_validity,
            "uidNext": row.uid_next,
            "metadata": notes.get(row.id, {}),
        }
        for row in rows
    ]
    now = ctx.environment.now()
    account = {"exportedAt": now, "mailboxes": mailbox_records, "messages": total}
    if task_order["settings"]:
        account |= await export_settings.load_settings_of_viewer(ctx, passphrase)
    chunk = archive_writer.encode_account_chunk_and_advance_state(
        export_format, archive_state, account, now
    )
    return AccountRecordChunk(chunk, total)


async def load_visible_message_ids(
    ctx: Context, user_id: int, selector: MessageSelector
) -> list[int]:
    """Return the IDs of the messages in mailboxes that a selector matches."""
    filter_sql = await selector.validated_with_filter_sql(ctx, [user_id])
    conditions = [
        is_visible_or_managed(ctx, Message),
        col(Message.user_id) == user_id,
        col(Message.deleted_at).is_(None),
    ]
    statement = select(col(Message.id)).where(*filter_sql.build_conditions(ctx, conditions))
    return [row.id for row in await ctx.read(statement.order_by(col(Message.id)))]


async def count_viewer_messages(ctx: Context) -> int:
    """Return the number of messages in the viewer's mailboxes."""
    statement = select(func.count()).select_from(Message).where(*_own_message_clauses(ctx))
    ((total,),) = await ctx.read(statement)
    return int(total)


async def _count_messages_to_export(ctx: Context) -> int:
    """Return the number of messages in mailboxes and of scheduled messages without a copy."""
    return await count_viewer_messages(
        ctx
    ) + await scheduled_messages.count_submissions_without_copy(ctx, require_user_id(ctx))


def _own_message_clauses(ctx: Context) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses of the viewer's messages in mailboxes."""
    return [col(Message.user_id) == require_user_id(ctx), col(Message.deleted_at).is_(None)]


async def encode_next_chunk(
    ctx: Context,
    export_format: ExportFormat,
    archive_state: ArchiveState,
    message_ids: Sequence[int] | None,
    position: ExportPosition,
) -> ExportChunk | None:
    """Write the chunk of the messages after a position; None if there are no more.

    Each message that existed when the export began, and still exists, is in one chunk, in the
    mailbox that then contains it. Messages come in list order, oldest first, or in the order of
    `message_ids`. Scheduled messages that are in no mailbox follow at the end.
    """
    if not isinstance(position, dict):
        chunk = await _encode_mailbox_chunk(
            ctx, export_format, archive_state, message_ids, position
        )
        if chunk is not None or message_ids is not None:
            return chunk
        position = {}
    return await _encode_scheduled_chunk(ctx, export_format, archive_state, position)


async def _encode_mailbox_chunk(
    ctx: Context,
    export_format: ExportFormat,
    archive_state: ArchiveState,
    message_ids: Sequence[int] | None,
    position: int | list[Any] | None,
) -> ExportChunk | None:
    """Write the next chunk of messages in mailboxes; None if there are no more."""
    statement = select(*select_columns(Message, {"id", "size", "listed_at"})).where(
        *_own_message_clauses(ctx)
    )
    if message_ids is not None:
        at = position if isinstance(position, int) else 0
        chunk_ids = message_ids[at : at + MAX_CHUNK_MESSAGES]
        if not chunk_ids:
            return None
        sizes = {
            row.id: row for row in await ctx.read(statement.where(col(Message.id).in_(chunk_ids)))
        }
        chosen_rows = _rows_of_next_chunk([sizes[key] for key in chunk_ids if key in sizes])
        next_position: ExportPosition = at + (
            chunk_ids.index(chosen_rows[-1].id) + 1 if chosen_rows else len(chunk_ids)
        )
    else:
        if isinstance(position, list):
            last_received_at, key = datetime.fromisoformat(position[0]), position[1]
            statement = statement.where(tuple_(*SORT_COLUMNS) > (last_received_at, key))
        chosen_rows = _rows_of_next_chunk(
            await ctx.read(statement.order_by(*SORT_COLUMNS).limit(MAX_CHUNK_MESSAGES))
        )
        if not chosen_rows:
            return None
        next_position = [chosen_rows[-1].listed_at.isoformat(), chosen_rows[-1].id]
    return await _encode_chunk_of_messages(
        ctx, export_format, archive_state, [row.id for row in chosen_rows], next_position
    )


def _rows_of_next_chunk(message_rows: Sequence[ColumnRow]) -> list[ColumnRow]:
    """Return the first rows, as many as fit into a chunk."""
    chosen_rows, weight = list[ColumnRow](), 0
    for row in message_rows:
        if chosen_rows and weight + row.size > MAX_CHUNK_BYTES:
            break
        chosen_rows.append(row)
        weight += row.size
    return chosen_rows


async def _encode_chunk_of_messages(
    ctx: Context,
    export_format: ExportFormat,
    archive_state: ArchiveState,
    message_ids: Sequence[int],
    next_position: ExportPosition,
) -> ExportChunk:
    """Write these messages as a chunk. Deleted messages are left out."""
    ctx.clear_loaded()
    rows = await ctx.read(
        select(*select_columns(Message, MESSAGE_COLUMNS), col(Mailbox.path))
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(*_own_message_clauses(ctx), col(Message.id).in_(message_ids))
        .order_by(*SORT_COLUMNS)
    )
    opened = await ctx.load_many(
        content.load_stored_messages_and_log_read, [row.id for row in rows]
    )
    waiting = await scheduled_messages.load_drafts_mailbox_by_scheduled_copy(
        ctx, require_user_id(ctx), message_ids
    )
    outgoing: list[ExportedMessage] = []
    damaged: list[str] = []
    for row, stored in zip(rows, opened, strict=True):
        if not isinstance(stored, StoredMessage):
            continue  # deleted since
        try:
            raw = await read_all(stored.stream_raw())
        except CorruptBlob as problem:
            damaged.append(f"message {row.id}: {problem}")
            continue
        except NotFound:
            continue  # deleted since
        record = MessageRecord(
            row.path,
            row.received_at,
            imap_flags(row),
            row.expires_at,
            row.public_metadata,
            row.envelope_from,
            row.envelope_to,
            row.sha256,
        )
        box_id = row.mailbox_id
        if row.id in waiting:
            drafts = waiting[row.id]
            record = scheduled_messages.message_record_as_draft(record, drafts)
            box_id = drafts.id if drafts else box_id
        number = archive_state.messages + len(outgoing) + 1
        outgoing.append(ExportedMessage(raw, record, box_id, number))
    ctx.clear_loaded()  # frees the memory of the loaded messages
    chunk = await _encode_in_thread(ctx, export_format, archive_state, outgoing)
    return ExportChunk(chunk, next_position, len(message_ids), damaged)


async def _encode_in_thread(
    ctx: Context,
    export_format: ExportFormat,
    archive_state: ArchiveState,
    messages: Sequence[ExportedMessage],
) -> ArchiveChunk:
    """Encode messages in the archive format, in a worker thread."""
    if not messages:
        return ArchiveChunk(b"")
    return await asyncio.to_thread(
        archive_writer.encode_messages_chunk_and_advance_state,
        export_format,
        archive_state,
        messages,
        ctx.environment.now(),
    )


async def _encode_scheduled_chunk(
    ctx: Context, export_format: ExportFormat, archive_state: ArchiveState, position: dict[str, Any]
) -> ExportChunk | None:
    """Write the next chunk of scheduled messages that are in no mailbox."""
    queued_position = position.get("queued", ())
    rows = _rows_of_next_chunk(
        await scheduled_messages.read_submissions_without_copy(
            ctx, require_user_id(ctx), queued_position, MAX_CHUNK_MESSAGES
        )
    )
    if not rows:
        return None
    mailbox = await scheduled_messages.find_drafts_mailbox(ctx, require_user_id(ctx))
    outgoing: list[ExportedMessage] = []
    damaged: list[str] = []
    for row in rows:
        try:
            raw = await read_all(
                (await open_submission(ctx.environment, row.id, row.blob_id)).stream_raw()
            )
        except CorruptBlob as problem:
            damaged.append(f"submission {row.queue_id}: {problem}")
            continue
        except NotFound:
            continue  # removed since
        record = scheduled_messages.record_of_queued_draft(row, raw, mailbox)
        number = archive_state.messages + len(outgoing) + 1
        outgoing.append(ExportedMessage(raw, record, mailbox.id if mailbox else 0, number))
    chunk = await _encode_in_thread(ctx, export_format, archive_state, outgoing)
    return ExportChunk(
        chunk, {"queued": scheduled_messages.position_of_submission(rows[-1])}, len(rows), damaged
    )
