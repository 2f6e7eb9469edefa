"""Open stored messages by their rows: read their layouts and MIME structures."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlmodel import col

from mail.mime import facts_from_message_bytes
from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.large_layout import (
    MAX_LAYOUT_IN_MEMORY,
    read_lazy_or_whole_layout,
)
from mail.storage.blobs.message_layout import MessageLayout, parse_layout
from mail.storage.message_content import (
    MESSAGE_QUERIES,
    SUBMISSION_QUERIES,
    BlobOwnerQueries,
    ReadRows,
    StoredMessage,
    ignore_bytes_read,
    log_if_damaged,
)
from mail.storage.message_structure import read_structure
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.object_store import ObjectStoreProtocol
from models.store.prepared_statements import PreparedStatement, integer_parameter

CONCURRENT_LAYOUT_READS = 8  # large layouts that are read from the store at the same time
_SELECT_LAYOUT_BLOBS = select(*blob_reader.COLUMNS).where(
    col(Blob.id).in_(bindparam("ids", expanding=True))
)
SELECT_LAYOUT_BLOB = PreparedStatement(
    select(*blob_reader.COLUMNS).where(col(Blob.id) == integer_parameter("blob"))
)
_EMPTY_STRUCTURE = facts_from_message_bytes(b"").structure


async def open_messages_and_log_damage(
    environment: Environment,
    rows: Sequence[ColumnRow],
    read_rows: ReadRows | None = None,
    queries: BlobOwnerQueries = MESSAGE_QUERIES,
    *,
    count_bytes_read: Callable[[int], None] = ignore_bytes_read,
) -> list[StoredMessage]:
    """Open the stored messages of rows with id, blob_id and structure, with one statement.

    `queries` are those of the table of the rows. `read_rows` reads through a transaction, which
    sees its own changes. Damage to one message is logged, and raised as CorruptBlob when it is
    read.
    """
    messages = await open_messages_unlogged(
        environment, rows, read_rows, queries, count_bytes_read=count_bytes_read
    )
    for message in messages:
        log_if_damaged(message)
    return messages


async def open_messages_unlogged(
    environment: Environment,
    rows: Sequence[ColumnRow],
    read_rows: ReadRows | None = None,
    queries: BlobOwnerQueries = MESSAGE_QUERIES,
    *,
    count_bytes_read: Callable[[int], None] = ignore_bytes_read,
) -> list[StoredMessage]:
    """Open stored messages as `open_messages_and_log_damage`, but without a log record of damage.

    It is for callers that log CorruptBlob themselves.
    """
    read_rows = read_rows or environment.database.read
    opened = await open_layouts(environment, await read_layout_blobs(rows, read_rows))
    return [
        StoredMessage(
            row,
            await read_structure(row),
            layout_of_row(row, opened),
            environment.object_store,
            read_rows,
            _queries=queries,
            count_bytes_read=count_bytes_read,
        )
        for row in rows
    ]


class _SubmissionRow(NamedTuple):
    id: int
    blob_id: int


async def open_submission(
    environment: Environment, submission_id: int, layout_blob_id: int
) -> StoredMessage:
    """Open a message of the queue, without its MIME tree. Raises CorruptBlob when it is read."""
    row: Any = _SubmissionRow(submission_id, layout_blob_id)
    opened = await open_layouts(
        environment,
        await environment.database.read_prepared(SELECT_LAYOUT_BLOB, {"blob": layout_blob_id}),
    )
    skeleton = layout_of_row(row, opened)
    return StoredMessage(
        row,
        _EMPTY_STRUCTURE,
        skeleton,
        environment.object_store,
        environment.database.read,
        _queries=SUBMISSION_QUERIES,
    )


async def read_layout_blobs(rows: Sequence[ColumnRow], read_rows: ReadRows) -> Sequence[ColumnRow]:
    """Read the rows of the layout blobs of messages, in no order, with one statement."""
    ids = list({row.blob_id for row in rows})
    return await read_rows(_SELECT_LAYOUT_BLOBS, {"ids": ids}) if ids else []


async def open_layouts(
    environment: Environment, layout_blobs: Sequence[ColumnRow]
) -> dict[int, MessageLayout | CorruptBlob]:
    """Open the layouts in these blobs, by blob id; the error instead of a damaged layout."""
    read_slots = asyncio.Semaphore(CONCURRENT_LAYOUT_READS)
    if len(layout_blobs) == 1:
        return {
            layout_blobs[0].id: await _open_layout(
                environment.object_store, layout_blobs[0], read_slots
            )
        }
    opened = await asyncio.gather(
        *(_open_layout(environment.object_store, blob, read_slots) for blob in layout_blobs)
    )
    return dict(zip((blob.id for blob in layout_blobs), opened, strict=True))


def layout_of_row(
    row: ColumnRow, layouts: Mapping[int, MessageLayout | CorruptBlob]
) -> MessageLayout | CorruptBlob:
    """The layout of a row, or the error if it is lost or damaged."""
    layout = layouts.get(row.blob_id)
    return CorruptBlob(f"The skeleton {row.blob_id} has no row") if layout is None else layout


async def _open_layout(
    store: ObjectStoreProtocol, blob: ColumnRow, semaphore: asyncio.Semaphore
) -> MessageLayout | CorruptBlob:
    """Read the layout of a message. Damage is returned as CorruptBlob, not raised."""
    try:
        async with semaphore:
            if blob.size > MAX_LAYOUT_IN_MEMORY:
                return await read_lazy_or_whole_layout(store, blob)
            return parse_layout(await blob_reader.read_and_verify_content(store, blob))
    except CorruptBlob as problem:
        return CorruptBlob(f"The skeleton {blob.digest} cannot be read. {problem}")
