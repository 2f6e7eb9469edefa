"""Moves of stored blobs between tiers: the bytes are stored first, then the row names them."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, LargeBinary, String, bindparam, func, select, update
from sqlmodel import col

from mail.storage.blobs.blob_writer import INLINE, INLINE_ROOT
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.object_stores import object_name
from models.files.blobs import COLD, Blob, MessageBlob
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked, table_of

AT_ONCE = 8  # blobs that are moved at the same time
_SHOWN = ("id", "digest", "size", "stored_size", "name", "data")
_OLD = bindparam("old", type_=String)
_MOVE = (
    update(table_of(Blob))
    .where(col(Blob.id) == bindparam("key"), func.coalesce(col(Blob.name), "") == _OLD)
    .values(name=bindparam("new", type_=String), data=bindparam("bytes", type_=LargeBinary))
)


@dataclass(frozen=True, slots=True)
class Moved:
    """A blob with its bytes stored in the new tier.

    They are in the object `new_name`, or in `data` for its row.
    """

    key: int
    old: str | None
    new: str | None
    data: bytes | None


def lies(*, cold: bool) -> ColumnElement[bool]:
    """SQL: true if a blob is in this tier. Bytes in the row are in the hot tier."""
    far = col(Blob.name).endswith(COLD)
    return far if cold else ~func.coalesce(far, False)


def needs_move(*, cold: bool) -> ColumnElement[bool]:
    """SQL: true if a blob of the message is in the other tier."""
    needed = select(col(MessageBlob.blob_id)).join(Blob, col(Blob.id) == col(MessageBlob.blob_id))
    mine = needed.where(col(MessageBlob.message_id) == col(Message.id), lies(cold=not cold))
    return mine.correlate(Message).exists()


async def bring(world: World, ids: Sequence[int], *, cold: bool) -> list[Moved]:
    """Copy the blobs of the messages to a tier, each once; `name_moved_blobs` changes the rows.

    A lost or damaged blob is skipped: `merganser check` reports it.
    """
    needed = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id).in_(ids))
    wanted = col(Blob.id).in_(needed)
    keys = await world.database.read(select(col(Blob.id)).where(wanted, lies(cold=not cold)))
    roots: set[int] = set()
    if not cold:
        asked = select(col(Message.blob_id)).where(col(Message.id).in_(ids)).distinct()
        roots = {row.blob_id for row in await world.database.read(asked)}
    moved: list[Moved] = []
    for start in range(0, len(keys), AT_ONCE):
        some = [row.id for row in keys[start : start + AT_ONCE]]
        asked = select(*picked(Blob, _SHOWN)).where(col(Blob.id).in_(some))
        rows = await world.database.read(asked)
        made = await asyncio.gather(*(_brought(world, row, roots, cold=cold) for row in rows))
        moved += [one for one in made if one]
    return moved


async def _brought(
    world: World, row: Picked, roots: Collection[int], *, cold: bool
) -> Moved | None:
    """Copy one blob to a tier; None if it is lost or damaged."""
    try:
        data = row.data if row.name is None else await world.blobs.get(row.name)
    except (KeyError, Corrupt):
        return None
    if len(data) != row.stored_size:
        return None
    if not cold and len(data) <= (INLINE_ROOT if row.id in roots else INLINE):
        return Moved(row.id, row.name, None, data)
    name = object_name(row.digest, world.key()) + (COLD if cold else "")
    await world.blobs.put(name, data)
    return Moved(row.id, row.name, name, None)


def name(turn: Turn, moved: Sequence[Moved]) -> None:
    """Set the new location in the rows of moved blobs, unless another process has moved them.

    The old objects are then without a row, and the garbage collector removes them.
    """
    given = [
        {"key": one.key, "old": one.old or "", "new": one.new, "bytes": one.data} for one in moved
    ]
    if given:
        turn.connection.execute(_MOVE, given)
