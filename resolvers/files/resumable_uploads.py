"""Receive uploads in several requests: announce, append parts, and complete."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlmodel import col

from mail.files.upload_parts import StoredPart, delete_part_rows
from mail.files.upload_removal import delete_upload_rows_up_to_limit, drop_unreferenced_objects
from mail.storage.blobs.object_stores import new_object_name
from models.errors import LimitReached, NotFound, RequestError, require_found
from models.files.blobs import Upload, UploadPart
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from resolvers.access import is_own_or_shared
from resolvers.context import Context
from resolvers.files.uploads import (
    LIFETIME,
    put_object,
    require_below_upload_limits,
    require_upload_scope_and_owner_id,
    unexpired_upload_totals_query,
)

MOST_PARTS = 10_000  # of one upload


@dataclass(frozen=True, slots=True)
class AnnouncedUpload:
    """The size and type of an upload before its bytes are sent.

    `client_metadata` is its metadata as the client sent it.
    """

    size: int
    content_type: str
    filename: str | None = None
    client_metadata: str | None = None


class OffsetMoved(Exception):
    """Raised if another request has added bytes; the upload continues at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"The next byte of the upload must be at offset {offset}.")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """The offset before and after a part."""

    previous_offset: int
    new_offset: int


@dataclass(frozen=True, slots=True)
class WholeUpload:
    """All bytes of an upload. `acknowledged` of them are acknowledged."""

    source: bytes | Path
    digest: str  # SHA-256, hex
    acknowledged: int = 0


async def create_upload(ctx: Context, announced: AnnouncedUpload) -> ColumnRow:
    """Create the row of an upload before its bytes are sent, within 24 hours.

    All announced bytes count for the limits. Raises RateLimited at 100 waiting uploads of the
    viewer, LimitReached if they exceed 1 GiB, and Forbidden without the scope MAIL or SUBMIT.
    """
    environment, owner_id = ctx.environment, require_upload_scope_and_owner_id(ctx)
    row = {
        "id": environment.new_id(),
        "user_id": owner_id,
        "size": announced.size,
        "received": 0,
        "content_type": announced.content_type,
        "filename": announced.filename,
        "client_metadata": announced.client_metadata,
        "created_at": environment.now(),
        "expires_at": environment.now() + LIFETIME,
    }

    def insert_upload_within_limits(transaction: DatabaseTransaction) -> ColumnRow:
        require_below_upload_limits(
            environment,
            transaction.connection.execute(
                unexpired_upload_totals_query(environment, owner_id)
            ).one(),
            announced.size,
        )
        return transaction.connection.execute(
            insert(Upload).returning(*select_columns(Upload)), row
        ).one()

    return await environment.run_transaction(insert_upload_within_limits, owner_id)


async def read_own_upload_row(ctx: Context, upload_id: int) -> ColumnRow:
    """Read the viewer's upload, finished or not. Raises NotFound or Forbidden."""
    require_upload_scope_and_owner_id(ctx)
    statement = select(*select_columns(Upload)).where(_is_own_upload(ctx, upload_id))
    return require_found(next(iter(await ctx.read(statement)), None), str(upload_id))


async def advance_upload_offset(ctx: Context, upload_id: int, progress: UploadProgress) -> None:
    """Acknowledge bytes that are stored in the spool file. Raises NotFound or OffsetMoved."""

    def advance_offset(transaction: DatabaseTransaction) -> bool:
        return _advance_offset_if_unchanged(ctx, transaction, upload_id, progress)

    if not await ctx.environment.run_transaction(advance_offset):
        raise await _offset_error(ctx, upload_id)


async def store_part_or_delete_object(ctx: Context, upload_id: int, part: StoredPart) -> None:
    """Acknowledge bytes that are stored as an object. Raises NotFound, OffsetMoved or LimitReached.

    If the part is refused, its object is deleted.
    """
    environment, progress = ctx.environment, UploadProgress(part.start, part.end)

    def try_insert_part_and_advance_offset(transaction: DatabaseTransaction) -> bool:
        """Return False if the offset has moved. Raises LimitReached for too many parts."""
        if not _advance_offset_if_unchanged(ctx, transaction, upload_id, progress):
            return False
        statement = select(func.count()).where(col(UploadPart.upload_id) == upload_id)
        if (used := transaction.connection.execute(statement).scalar_one()) >= MOST_PARTS:
            text = f"An upload has at most {MOST_PARTS} parts: send more bytes in each request."
            raise LimitReached(text, limit=MOST_PARTS, used=used)
        transaction.connection.execute(
            insert(UploadPart), part.column_values(transaction.environment.new_id(), upload_id)
        )
        return True

    try:
        if not await environment.run_transaction(try_insert_part_and_advance_offset):
            raise await _offset_error(ctx, upload_id)
    except (RequestError, OffsetMoved):  # after other failures a row may name the object
        await environment.object_store.delete([part.name])
        raise


async def require_offset(ctx: Context, upload_id: int, expected_offset: int) -> None:
    """Raise OffsetMoved if the upload does not continue at this offset.

    Raises NotFound if it has ended.
    """
    row = await read_own_upload_row(ctx, upload_id)
    if next_offset(row) != expected_offset or row.blob_name is not None:
        raise OffsetMoved(next_offset(row))


async def complete_upload(ctx: Context, upload_id: int, upload: WholeUpload) -> ColumnRow:
    """Store all bytes for 24 hours from now and return the row. Raises NotFound or OffsetMoved."""
    environment = ctx.environment
    object_key = new_object_name(upload.digest, environment.new_id())
    try:
        await put_object(environment, object_key, upload.source)
    except FileNotFoundError:  # the upload may have ended, and the file with it
        await require_offset(ctx, upload_id, upload.acknowledged)
        raise
    values: dict[str, Any] = {
        "received": col(Upload.size),
        "digest": upload.digest,
        "blob_name": object_key,
        "expires_at": environment.now() + LIFETIME,
    }
    is_unfinished = _is_unfinished_at(ctx, upload_id, upload.acknowledged)
    statement = (
        update(Upload).where(is_unfinished).values(**values).returning(*select_columns(Upload))
    )

    def update_row(transaction: DatabaseTransaction) -> tuple[ColumnRow | None, list[str]]:
        row = transaction.connection.execute(statement).one_or_none()
        return row, delete_part_rows(transaction, [upload_id]) if row else []

    row, part_objects = await environment.run_transaction(update_row)
    if row is None:
        await environment.object_store.delete([object_key])
        raise await _offset_error(ctx, upload_id)
    await drop_unreferenced_objects(environment, part_objects)
    return row


async def delete_upload(ctx: Context, upload_id: int) -> None:
    """Delete the upload, finished or not. Raises NotFound or Forbidden."""
    require_upload_scope_and_owner_id(ctx)
    is_this_upload = _is_own_upload(ctx, upload_id)
    removed = await ctx.environment.run_transaction(
        lambda transaction: delete_upload_rows_up_to_limit(transaction, is_this_upload)
    )
    if not removed.count:
        raise NotFound(str(upload_id))
    await drop_unreferenced_objects(ctx.environment, removed.objects)


def next_offset(upload: ColumnRow) -> int:
    """Return the offset at which the upload continues."""
    return int(upload.received if upload.blob_name is None else upload.size)


async def _offset_error(ctx: Context, upload_id: int) -> OffsetMoved:
    """Return the error if bytes could not be added. Raises NotFound if the upload has ended."""
    return OffsetMoved(next_offset(await read_own_upload_row(ctx, upload_id)))


def _advance_offset_if_unchanged(
    ctx: Context, transaction: DatabaseTransaction, upload_id: int, progress: UploadProgress
) -> bool:
    """Acknowledge bytes; False if the upload has ended or other bytes were acknowledged."""
    is_unfinished = _is_unfinished_at(ctx, upload_id, progress.previous_offset)
    statement = update(Upload).where(is_unfinished).values(received=progress.new_offset)
    return bool(transaction.connection.execute(statement).rowcount)


def _is_unfinished_at(ctx: Context, upload_id: int, next_byte: int) -> ColumnElement[bool]:
    """Return the SQL condition that the viewer's upload continues at this offset."""
    unfinished = col(Upload.blob_name).is_(None) & (col(Upload.received) == next_byte)
    return _is_own_upload(ctx, upload_id) & unfinished


def _is_own_upload(ctx: Context, upload_id: int) -> ColumnElement[bool]:
    is_not_expired = col(Upload.expires_at) > ctx.environment.now()
    return (col(Upload.id) == upload_id) & is_own_or_shared(ctx, Upload) & is_not_expired
