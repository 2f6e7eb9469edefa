"""Uploads whose bytes come in several requests: what is promised of them, and when it is kept."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlmodel import col

from mail.blobs.store import object_name
from mail.housekeeping import forget_objects
from models.blobs import Upload
from models.columns import Picked, picked
from models.errors import NotFound, found
from models.world import Turn
from resolvers.access import visible
from resolvers.context import Context
from resolvers.uploads import KEPT, check, kept, permit, put


@dataclass(frozen=True, slots=True)
class Announced:
    """Bytes that are to come. `told` is what was said of them, word for word."""

    size: int
    content_type: str
    filename: str | None = None
    told: str | None = None


async def create(ctx: Context, coming: Announced) -> Picked:
    """Make room for bytes that are to come within 24 h; the row.

    They count from the start: RateLimited where 100 uploads of the viewer wait, LimitReached
    where they have 1 GiB with this one. Forbidden as `uploads.permit` says.
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
    """The viewer's upload, whole or not. NotFound, Forbidden."""
    permit(ctx)
    theirs = select(*picked(Upload)).where(_mine(ctx, upload_id))
    return found(next(iter(await ctx.read(theirs)), None), str(upload_id))


async def note(ctx: Context, upload_id: int, received: int) -> None:
    """Promise that so many bytes are safe. NotFound where it has ended meanwhile."""
    waits = _mine(ctx, upload_id) & col(Upload.blob_name).is_(None)
    safe = update(Upload).where(waits).values(received=received)
    if not await ctx.world.apply(lambda turn: turn.connection.execute(safe).rowcount):
        raise NotFound(str(upload_id))


async def complete(ctx: Context, upload_id: int, source: bytes | Path) -> Picked:
    """Store the bytes, all of which are there, for 24 h from here; the row. NotFound."""
    world = ctx.world
    try:
        digest = await asyncio.to_thread(_digest, source)
        name = object_name(digest, world.key())
        await put(world, name, source)
    except FileNotFoundError:
        await find(ctx, upload_id)  # it may have ended, and the file with it
        raise
    waits = _mine(ctx, upload_id) & col(Upload.blob_name).is_(None)
    whole: dict[str, Any] = {
        "received": col(Upload.size),
        "digest": digest,
        "blob_name": name,
        "expires_at": world.now() + KEPT,
    }
    made = update(Upload).where(waits).values(**whole).returning(*picked(Upload))
    row = await world.apply(lambda turn: turn.connection.execute(made).one_or_none())
    if row is None:
        await world.blobs.delete([name])
    return found(row, str(upload_id))


async def end(ctx: Context, upload_id: int) -> None:
    """Forget the upload, whole or not. NotFound, Forbidden."""
    permit(ctx)
    removal = delete(Upload).where(_mine(ctx, upload_id)).returning(col(Upload.blob_name))
    row = await ctx.world.apply(lambda turn: turn.connection.execute(removal).one_or_none())
    name = found(row, str(upload_id)).blob_name
    if name is not None:
        await forget_objects(ctx.world, [name])


def _mine(ctx: Context, upload_id: int) -> ColumnElement[bool]:
    lives = col(Upload.expires_at) > ctx.world.now()
    return (col(Upload.id) == upload_id) & visible(ctx, Upload) & lives


def _digest(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
