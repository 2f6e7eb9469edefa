"""Moves of stored blobs between tiers: the bytes are stored first, then the row names them."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, LargeBinary, String, bindparam, func, select, update
from sqlmodel import col

from mail.storage.blobs.blob_writer import MAX_INLINE_BLOB, MAX_INLINE_LAYOUT
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import new_object_name
from models.files.blobs import COLD_SUFFIX, Blob, MessageBlob
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table, select_columns

CONCURRENT_BLOBS = 8  # blobs that are moved at the same time
_COLUMNS = ("id", "digest", "size", "stored_size", "name", "data")
_OLD_NAME = bindparam("old", type_=String)
_UPDATE_LOCATION = (
    update(core_table(Blob))
    .where(col(Blob.id) == bindparam("key"), func.coalesce(col(Blob.name), "") == _OLD_NAME)
    .values(name=bindparam("new", type_=String), data=bindparam("bytes", type_=LargeBinary))
)


@dataclass(frozen=True, slots=True)
class MovedBlob:
    """A blob with its bytes stored in the new tier.

    They are in the object `new_name`, or in `data` for its row.
    """

    blob_id: int
    old_name: str | None
    new_name: str | None
    data: bytes | None


def is_in_tier(*, cold: bool) -> ColumnElement[bool]:
    """SQL: true if a blob is in this tier. Bytes in the row are in the hot tier."""
    is_cold = col(Blob.name).endswith(COLD_SUFFIX)
    return is_cold if cold else ~func.coalesce(is_cold, False)


def is_message_with_blobs_to_move(*, cold: bool) -> ColumnElement[bool]:
    """SQL: true if a blob of the message is in the other tier."""
    needed = select(col(MessageBlob.blob_id)).join(Blob, col(Blob.id) == col(MessageBlob.blob_id))
    own_needed = needed.where(
        col(MessageBlob.message_id) == col(Message.id), is_in_tier(cold=not cold)
    )
    return own_needed.correlate(Message).exists()


async def copy_blobs_to_tier(
    environment: Environment, message_ids: Sequence[int], *, cold: bool
) -> list[MovedBlob]:
    """Copy the blobs of the messages to a tier, each once.

    `update_rows_of_moved_blobs` changes the rows. A lost or damaged blob is skipped:
    `merganser check` reports it.
    """
    needed = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id).in_(message_ids))
    condition = col(Blob.id).in_(needed)
    keys = await environment.database.read(
        select(col(Blob.id)).where(condition, is_in_tier(cold=not cold))
    )
    roots: set[int] = set()
    if not cold:
        statement = select(col(Message.blob_id)).where(col(Message.id).in_(message_ids)).distinct()
        roots = {row.blob_id for row in await environment.database.read(statement)}
    moved: list[MovedBlob] = []
    for start in range(0, len(keys), CONCURRENT_BLOBS):
        chunk_ids = [row.id for row in keys[start : start + CONCURRENT_BLOBS]]
        statement = select(*select_columns(Blob, _COLUMNS)).where(col(Blob.id).in_(chunk_ids))
        rows = await environment.database.read(statement)
        copies = await asyncio.gather(
            *(_copy_blob_unless_damaged(environment, row, roots, cold=cold) for row in rows)
        )
        moved += [copy for copy in copies if copy]
    return moved


async def _copy_blob_unless_damaged(
    environment: Environment, blob_row: ColumnRow, layout_blob_ids: Collection[int], *, cold: bool
) -> MovedBlob | None:
    """Copy one blob to a tier; None if it is lost or damaged."""
    try:
        data = (
            blob_row.data
            if blob_row.name is None
            else await environment.object_store.get(blob_row.name)
        )
    except (KeyError, CorruptBlob):
        return None
    if len(data) != blob_row.stored_size:
        return None
    if not cold and len(data) <= (
        MAX_INLINE_LAYOUT if blob_row.id in layout_blob_ids else MAX_INLINE_BLOB
    ):
        return MovedBlob(blob_row.id, blob_row.name, None, data)
    name = new_object_name(blob_row.digest, environment.new_id()) + (COLD_SUFFIX if cold else "")
    await environment.object_store.put(name, data)
    return MovedBlob(blob_row.id, blob_row.name, name, None)


def update_rows_of_moved_blobs(
    transaction: DatabaseTransaction, moved: Sequence[MovedBlob]
) -> None:
    """Set the new location in the rows of moved blobs, unless another process has moved them.

    The old objects are then without a row, and the garbage collector removes them.
    """
    parameter_sets = [
        {"key": copy.blob_id, "old": copy.old_name or "", "new": copy.new_name, "bytes": copy.data}
        for copy in moved
    ]
    if parameter_sets:
        transaction.connection.execute(_UPDATE_LOCATION, parameter_sets)
