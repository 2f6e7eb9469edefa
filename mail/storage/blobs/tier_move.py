"""Moves of stored blobs between tiers: the bytes are stored first, then the row names them."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, LargeBinary, String, bindparam, func, select, update
from sqlmodel import col

from mail.storage.blobs.blob_writer import MAX_INLINE_BLOB, MAX_INLINE_LAYOUT
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import object_name
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
    far = col(Blob.name).endswith(COLD_SUFFIX)
    return far if cold else ~func.coalesce(far, False)


def is_message_with_blobs_to_move(*, cold: bool) -> ColumnElement[bool]:
    """SQL: true if a blob of the message is in the other tier."""
    needed = select(col(MessageBlob.blob_id)).join(Blob, col(Blob.id) == col(MessageBlob.blob_id))
    mine = needed.where(col(MessageBlob.message_id) == col(Message.id), is_in_tier(cold=not cold))
    return mine.correlate(Message).exists()


async def copy_blobs_to_tier(
    environment: Environment, message_ids: Sequence[int], *, cold: bool
) -> list[MovedBlob]:
    """Copy the blobs of the messages to a tier, each once.

    `update_rows_of_moved_blobs` changes the rows. A lost or damaged blob is skipped:
    `merganser check` reports it.
    """
    needed = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id).in_(message_ids))
    wanted = col(Blob.id).in_(needed)
    keys = await environment.database.read(
        select(col(Blob.id)).where(wanted, is_in_tier(cold=not cold))
    )
    roots: set[int] = set()
    if not cold:
        asked = select(col(Message.blob_id)).where(col(Message.id).in_(message_ids)).distinct()
        roots = {row.blob_id for row in await environment.database.read(asked)}
    moved: list[MovedBlob] = []
    for start in range(0, len(keys), CONCURRENT_BLOBS):
        some = [row.id for row in keys[start : start + CONCURRENT_BLOBS]]
        asked = select(*select_columns(Blob, _COLUMNS)).where(col(Blob.id).in_(some))
        rows = await environment.database.read(asked)
        made = await asyncio.gather(
            *(_copy_blob(environment, row, roots, cold=cold) for row in rows)
        )
        moved += [one for one in made if one]
    return moved


async def _copy_blob(
    environment: Environment, row: ColumnRow, layout_blob_ids: Collection[int], *, cold: bool
) -> MovedBlob | None:
    """Copy one blob to a tier; None if it is lost or damaged."""
    try:
        data = row.data if row.name is None else await environment.object_store.get(row.name)
    except (KeyError, CorruptBlob):
        return None
    if len(data) != row.stored_size:
        return None
    if not cold and len(data) <= (
        MAX_INLINE_LAYOUT if row.id in layout_blob_ids else MAX_INLINE_BLOB
    ):
        return MovedBlob(row.id, row.name, None, data)
    name = object_name(row.digest, environment.new_id()) + (COLD_SUFFIX if cold else "")
    await environment.object_store.put(name, data)
    return MovedBlob(row.id, row.name, name, None)


def update_rows_of_moved_blobs(
    transaction: DatabaseTransaction, moved: Sequence[MovedBlob]
) -> None:
    """Set the new location in the rows of moved blobs, unless another process has moved them.

    The old objects are then without a row, and the garbage collector removes them.
    """
    given = [
        {"key": one.blob_id, "old": one.old_name or "", "new": one.new_name, "bytes": one.data}
        for one in moved
    ]
    if given:
        transaction.connection.execute(_UPDATE_LOCATION, given)
