"""Store uploads: bytes that a client sends before the mutation that uses them, kept for a day."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlmodel import col

from mail.mime.header_parameters import filename_of, parameters
from mail.storage.blobs.compression import verify
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.object_stores import object_name
from models.errors import Forbidden, LimitReached, RateLimited, Refused, found
from models.files.blobs import Upload
from models.runtime.environment import Turn, World
from models.runtime.options import MIB
from models.store.columns import Picked, picked
from models.users.roles import Scope, opened
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.pagination import by_keys

KEPT = timedelta(hours=24)
MOST = 100  # of one user
MOST_BYTES = 1024 * MIB  # of one user
ROUND = 1000  # rows that one transaction deletes
LONGEST = 255  # characters of a file name
OPAQUE = "application/octet-stream"

_KIND = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Received:
    """Received bytes, in memory or in a file that exists until they are stored."""

    source: bytes | Path
    size: int
    digest: str  # SHA-256, hex
    content_type: str = OPAQUE
    filename: str | None = None


def described(headers: Mapping[str, str]) -> tuple[str, str | None]:
    """Return media type and file name from HTTP headers with names in lower case."""
    kind = headers.get("content-type", "").partition(";")[0]
    _, given = parameters(headers.get("content-disposition", ""))
    return kind_of(kind), name_of(filename_of(given.get("filename")) or "")


def kind_of(text: str) -> str:
    """Return the media type in lower case, or application/octet-stream if it is invalid."""
    kind = text.strip().lower()
    return kind if _KIND.fullmatch(kind) else OPAQUE


def name_of(text: str) -> str | None:
    """Return the last part of a path, at most 255 characters, or None if it is empty."""
    return text.replace("\\", "/").rsplit("/", 1)[-1][:LONGEST] or None


async def begin(ctx: Context, size: int = 0) -> None:
    """Check whether the viewer may upload `size` bytes, or an unknown number if it is 0.

    Raises Forbidden without the scope MAIL or SUBMIT; RateLimited and LimitReached at the limits
    of waiting uploads.
    """
    owner = permit(ctx)
    check(ctx.world, (await ctx.read(kept(ctx.world, owner)))[0], size)


def permit(ctx: Context) -> int:
    """Return the owner of the viewer's uploads.

    Raises Forbidden without the scope MAIL or SUBMIT.
    """
    viewer = ctx.viewer
    owner = own(ctx)
    if viewer.read_only or not {Scope.MAIL, Scope.SUBMIT} & opened(viewer.scopes):
        raise Forbidden("this needs the scope MAIL or SUBMIT", requires=Scope.MAIL)
    return owner


def kept(world: World, owner: int) -> Select[*tuple[Any, ...]]:
    """Return the query for unexpired uploads: `many`, `bytes`, and when the `first` expires."""
    return select(
        func.count().label("many"),
        func.coalesce(func.sum(col(Upload.size)), 0).label("bytes"),
        func.min(col(Upload.expires_at)).label("first"),
    ).where(col(Upload.user_id) == owner, col(Upload.expires_at) > world.now())


def check(world: World, kept: Picked, size: int) -> None:
    """Raise RateLimited at 100 waiting uploads, LimitReached if the new size exceeds 1 GiB."""
    if kept.many >= MOST:
        wait = max(kept.first - world.now(), timedelta(seconds=1))
        raise RateLimited(f"{MOST} uploads wait to be used", retry_after=wait)
    if kept.bytes + size > MOST_BYTES:
        text = f"uploads of {MOST_BYTES} bytes wait to be used"
        raise LimitReached(text, limit=MOST_BYTES, used=int(kept.bytes))


async def finish(ctx: Context, received: Received) -> Picked:
    """Store received bytes durably and return the row.

    Raises RateLimited at 100 waiting uploads of the viewer, and LimitReached if they exceed 1 GiB.
    """
    world, owner = ctx.world, own(ctx)
    key = world.key()
    name = object_name(received.digest, key)
    row = {
        "id": key,
        "user_id": owner,
        "size": received.size,
        "received": received.size,
        "digest": received.digest,
        "content_type": received.content_type,
        "filename": received.filename,
        "blob_name": name,
        "created_at": world.now(),
        "expires_at": world.now() + KEPT,
    }

    def unit(turn: Turn) -> Picked:
        check(world, turn.connection.execute(kept(world, owner)).one(), received.size)
        made = insert(Upload).returning(*picked(Upload))
        return turn.connection.execute(made, row).one()

    await put(world, name, received.source)
    try:
        return await world.apply(unit, owner)
    except Refused:  # no row names the object; after other failures one can
        await world.blobs.delete([name])
        raise


async def put(world: World, name: str, source: bytes | Path) -> None:
    """Store the bytes, or those of the file, under this name in the object store."""
    if isinstance(source, Path):
        await world.blobs.put_file(name, source)
    else:
        await world.blobs.put(name, source)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's uploads, in the order of the ids; None if one is expired or unfinished."""
    theirs = select(*picked(Upload)).where(
        visible(ctx, Upload),
        col(Upload.expires_at) > ctx.world.now(),
        col(Upload.blob_name).is_not(None),
    )
    return await by_keys(ctx, theirs, col(Upload.id), ids)


async def read_head(ctx: Context, upload: Picked, most: int) -> bytes:
    """Read the first bytes of an upload without verifying them.

    Raises CorruptBlob if its object is lost.
    """
    try:
        return await ctx.world.blobs.get_range(upload.blob_name, 0, min(upload.size, most))
    except KeyError as problem:
        raise _lost(upload) from problem


async def read_upload(ctx: Context, upload_id: int) -> bytes:
    """Read and verify an upload.

    Raises NotFound if the viewer has none, CorruptBlob if it is damaged.
    """
    row = found(await ctx.load(by_ids, upload_id), str(upload_id))
    try:
        content = await ctx.world.blobs.get(row.blob_name)
        return await asyncio.to_thread(verify, row.digest, content)
    except KeyError as problem:
        raise _lost(row) from problem


def _lost(upload: Picked) -> Corrupt:
    return Corrupt(f"The object {upload.blob_name} of an upload is lost")
