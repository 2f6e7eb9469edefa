"""Reading of stored blobs, a few at a time, so that memory use is bounded."""

import asyncio
from typing import Any

from sqlalchemy import SQLColumnExpression
from sqlmodel import col

from mail.storage.blobs.compression import digest_of, expand
from mail.storage.blobs.errors import Corrupt
from models.files.blobs import Blob
from models.runtime.environment import World
from models.store.columns import Picked

AT_ONCE = 16  # rows of one statement, each with at most 256 KiB of compressed bytes
LARGE = 64 * 1024  # bytes; from this size on a thread works on them
ABOUT: tuple[SQLColumnExpression[Any], ...] = (
    col(Blob.id),
    col(Blob.tenant_id),
    col(Blob.digest),
    col(Blob.size),
    col(Blob.stored_size),
    col(Blob.codec),
    col(Blob.name),
)


async def packed(world: World, row: Picked) -> bytes:
    """Read the stored bytes of a blob. Raises KeyError if they are missing."""
    if row.name is not None:
        return await world.blobs.get(row.name)
    if row.data is None:
        raise KeyError(row.digest)
    return bytes(row.data)


async def content(world: World, row: Picked) -> bytes:
    """Read and decompress a blob without comparing its digest.

    Raises KeyError if its bytes are missing, and CorruptBlob if they can't be decompressed.
    """
    data = await packed(world, row)
    if len(data) != row.stored_size:
        raise Corrupt(f"{len(data)} bytes are stored instead of {row.stored_size}")
    if row.size < LARGE:
        return expand(row.codec, data, row.size)
    return await asyncio.to_thread(expand, row.codec, data, row.size)


async def digest(data: bytes) -> str:
    """The SHA-256 of a content; of a large one in a thread."""
    return digest_of(data) if len(data) < LARGE else await asyncio.to_thread(digest_of, data)
