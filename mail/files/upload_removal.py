"""Removal of uploads: their rows, the rows of their parts, and the objects of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, delete, select
from sqlmodel import col

from mail.files.upload_parts import delete_parts
from mail.storage.blobs.garbage_collector import drop_objects
from models.files.blobs import Blob, Upload
from models.runtime.environment import Turn, World

ROUND = 1000  # rows that one transaction deletes


@dataclass(frozen=True, slots=True)
class RemovedUploads:
    """The number of deleted uploads, and the objects that their rows named."""

    count: int = 0
    objects: list[str] = field(default_factory=list)


def delete_uploads(
    turn: Turn, condition: ColumnElement[bool], *, skip_locked: bool = False
) -> RemovedUploads:
    """Delete at most 1,000 uploads with their parts.

    Call `drop_unreferenced_objects` after the commit. The rows are locked first, in the order of
    their ids: then no request adds a part.
    """
    chosen = select(col(Upload.id), col(Upload.blob_name)).where(condition)
    chosen = chosen.order_by(col(Upload.id)).limit(ROUND).with_for_update(skip_locked=skip_locked)
    rows = turn.connection.execute(chosen).all()
    ids = [row.id for row in rows]
    objects = [row.blob_name for row in rows if row.blob_name is not None]
    if ids:
        objects += delete_parts(turn, ids)
        turn.connection.execute(delete(Upload).where(col(Upload.id).in_(ids)))
    return RemovedUploads(len(ids), objects)


async def delete_expired(world: World) -> int:
    """Delete the expired uploads, and return their number."""
    expired, count = col(Upload.expires_at) <= world.now(), 0
    while True:
        gone = await world.apply(lambda turn: delete_uploads(turn, expired, skip_locked=True))
        await forget_objects(world, gone.objects)
        count += gone.count
        if gone.count < ROUND:
            return count


async def forget_objects(world: World, names: Sequence[str]) -> None:
    """Delete the objects of deleted uploads, except objects that became blobs."""
    if not names:
        return
    taken = select(col(Blob.name)).where(col(Blob.name).in_(names))
    used = {row.name for row in await world.database.read(taken)}
    await drop_objects(world, [name for name in names if name not in used])
