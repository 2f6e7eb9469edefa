"""Reading stored pieces: one at a time, so that memory holds one however large the store is."""

import asyncio
from typing import Any

from sqlalchemy import SQLColumnExpression
from sqlmodel import col

from mail.storage.blobs.compression import digest_of, expand
from mail.storage.blobs.errors import Corrupt
from models.files.blobs import Blob
from models.runtime.environment import World
from models.store.columns import Picked

AT_ONCE = 16  # rows read together, each with at most 256 KiB of compressed bytes
LARGE = 64 * 1024  # bytes; from here on a thread works on them
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
    """The bytes of a blob as they are stored; KeyError where they are not."""
    if row.name is not None:
        return await world.blobs.get(row.name)
    if row.data is None:
        raise KeyError(row.digest)
    return bytes(row.data)


async def content(world: World, row: Picked) -> bytes:
    """The bytes that a blob stands for, whatever their digest. KeyError, Corrupt."""
    data = await packed(world, row)
    if len(data) != row.stored_size:
        raise Corrupt(f"{len(data)} bytes are stored instead of {row.stored_size}")
    if row.size < LARGE:
        return expand(row.codec, data, row.size)
    return await asyncio.to_thread(expand, row.codec, data, row.size)


async def digest(data: bytes) -> str:
    """The SHA-256 of a content."""
    return digest_of(data) if len(data) < LARGE else await asyncio.to_thread(digest_of, data)
