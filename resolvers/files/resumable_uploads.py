"""Receive uploads in several requests: announce, append parts, and complete."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlmodel import col

from mail.files.upload_parts import StoredPart, delete_parts
from mail.files.upload_removal import delete_uploads, forget_objects
from mail.storage.blobs.object_stores import object_name
from models.errors import LimitReached, NotFound, Refused, found
from models.files.blobs import Upload, UploadPart
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from resolvers.access import visible
from resolvers.context import Context
from resolvers.files.uploads import KEPT, check, kept, permit, put

MOST_PARTS = 10_000  # of one upload


@dataclass(frozen=True, slots=True)
class Announced:
    """The size and type of an upload before its bytes are sent.

    `client_metadata` is its metadata as the client sent it.
    """

    size: int
    content_type: str
    filename: str | None = None
    told: str | None = None


class OffsetMoved(Exception):
    """Raised if another request has added bytes; the upload continues at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload goes on at {offset}")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Progress:
    """The offset before and after a part."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class WholeUpload:
    """All bytes of an upload. `acknowledged` of them are acknowledged."""

    source: bytes | Path
    digest: str  # SHA-256, hex
    received: int = 0


async def create(ctx: Context, coming: Announced) -> Picked:
    """Create the row of an upload before its bytes are sent, within 24 hours.

    All announced bytes count for the limits. Raises RateLimited at 100 waiting uploads of the
    viewer, LimitReached if they exceed 1 GiB, and Forbidden without the scope MAIL or SUBMIT.
    """
    world, owner = ctx.world, permit(ctx)
    row = {
        "id": world.key(),
        "user_id": owner,
        "size": coming.size,
        "received": 0,
        "content_type": coming.content_type,
        "filename": coming.filename,
        "told": coming.told,
        "created_at": world.now(),
        "expires_at": world.now() + KEPT,
    }

    def unit(turn: Turn) -> Picked:
        check(world, turn.connection.execute(kept(world, owner)).one(), coming.size)
        return turn.connection.execute(insert(Upload).returning(*picked(Upload)), row).one()

    return await world.apply(unit, owner)


async def find(ctx: Context, upload_id: int) -> Picked:
    """Read the viewer's upload, finished or not. Raises NotFound or Forbidden."""
    permit(ctx)
    theirs = select(*picked(Upload)).where(_mine(ctx, upload_id))
    return found(next(iter(await ctx.read(theirs)), None), str(upload_id))


async def note(ctx: Context, upload_id: int, progress: Progress) -> None:
    """Acknowledge bytes that are stored in the spool file. Raises NotFound or OffsetMoved."""

    def unit(turn: Turn) -> bool:
        return _move(ctx, turn, upload_id, progress)

    if not await ctx.world.apply(unit):
        raise await _moved(ctx, upload_id)


async def add_part(ctx: Context, upload_id: int, part: StoredPart) -> None:
    """Acknowledge bytes that are stored as an object. Raises NotFound, OffsetMoved or LimitReached.

    If the part is refused, its object is deleted.
    """
    world, progress = ctx.world, Progress(part.start, part.end)

    def unit(turn: Turn) -> bool:
        if not _move(ctx, turn, upload_id, progress):
            return False
        many = select(func.count()).where(col(UploadPart.upload_id) == upload_id)
        if (used := turn.connection.execute(many).scalar_one()) >= MOST_PARTS:
            text = f"an upload has at most {MOST_PARTS} parts: send more bytes in each request"
            raise LimitReached(text, limit=MOST_PARTS, used=used)
        turn.connection.execute(insert(UploadPart), part.row(turn.world.key(), upload_id))
        return True

    try:
        if not await world.apply(unit):
            raise await _moved(ctx, upload_id)
    except (Refused, OffsetMoved):  # after other failures a row may name the object
        await world.blobs.delete([part.name])
        raise


async def raise_if_moved(ctx: Context, upload_id: int, received: int) -> None:
    """Raise OffsetMoved if the upload does not continue at this offset.

    Raises NotFound if it has ended.
    """
    row = await find(ctx, upload_id)
    if offset(row) != received or row.blob_name is not None:
        raise OffsetMoved(offset(row))


async def complete(ctx: Context, upload_id: int, whole: WholeUpload) -> Picked:
    """Store all bytes for 24 hours from now and return the row. Raises NotFound or OffsetMoved."""
    world = ctx.world
    name = object_name(whole.digest, world.key())
    try:
        await put(world, name, whole.source)
    except FileNotFoundError:  # the upload may have ended, and the file with it
        await raise_if_moved(ctx, upload_id, whole.received)
        raise
    values: dict[str, Any] = {
        "received": col(Upload.size),
        "digest": whole.digest,
        "blob_name": name,
        "expires_at": world.now() + KEPT,
    }
    waits = _waits(ctx, upload_id, whole.received)
    made = update(Upload).where(waits).values(**values).returning(*picked(Upload))

    def unit(turn: Turn) -> tuple[Picked | None, list[str]]:
        row = turn.connection.execute(made).one_or_none()
        return row, delete_parts(turn, [upload_id]) if row else []

    row, objects = await world.apply(unit)
    if row is None:
        await world.blobs.delete([name])
        raise await _moved(ctx, upload_id)
    await forget_objects(world, objects)
    return row


async def end(ctx: Context, upload_id: int) -> None:
    """Delete the upload, finished or not. Raises NotFound or Forbidden."""
    permit(ctx)
    mine = _mine(ctx, upload_id)
    removed = await ctx.world.apply(lambda turn: delete_uploads(turn, mine))
    if not removed.count:
        raise NotFound(str(upload_id))
    await forget_objects(ctx.world, removed.objects)


def offset(row: Picked) -> int:
    """Return the offset at which the upload continues."""
    return int(row.received if row.blob_name is None else row.size)


async def _moved(ctx: Context, upload_id: int) -> OffsetMoved:
    """Return the error if bytes could not be added. Raises NotFound if the upload has ended."""
    return OffsetMoved(offset(await find(ctx, upload_id)))


def _move(ctx: Context, turn: Turn, upload_id: int, progress: Progress) -> bool:
    """Acknowledge bytes; False if the upload has ended or other bytes were acknowledged."""
    waits = _waits(ctx, upload_id, progress.before)
    safe = update(Upload).where(waits).values(received=progress.after)
    return bool(turn.connection.execute(safe).rowcount)


def _waits(ctx: Context, upload_id: int, received: int) -> ColumnElement[bool]:
    """Return the SQL condition that the viewer's upload continues at this offset."""
    unfinished = col(Upload.blob_name).is_(None) & (col(Upload.received) == received)
    return _mine(ctx, upload_id) & unfinished


def _mine(ctx: Context, upload_id: int) -> ColumnElement[bool]:
    lives = col(Upload.expires_at) > ctx.world.now()
    return (col(Upload.id) == upload_id) & visible(ctx, Upload) & lives
