"""Reading of stored blobs, a few at a time, so that memory use is bounded."""

import asyncio
from typing import Any

from sqlalchemy import SQLColumnExpression
from sqlmodel import col

from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.compression import content_digest, decompress
from mail.storage.blobs.errors import CorruptBlob
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.columns import ColumnRow

ROWS_PER_READ = 16  # rows of one statement, each with at most 256 KiB of compressed bytes
THREAD_THRESHOLD = 64 * 1024  # bytes; from this size on a thread works on them
BLOB_COLUMNS: tuple[SQLColumnExpression[Any], ...] = (
    col(Blob.id),
    col(Blob.tenant_id),
    col(Blob.digest),
    col(Blob.size),
    col(Blob.stored_size),
    col(Blob.codec),
    col(Blob.name),
)


async def read_stored_bytes(environment: Environment, blob_row: ColumnRow) -> bytes:
    """Read the stored bytes of a blob. Raises KeyError if they are missing."""
    if blob_row.name is not None:
        return await store_without_cache(environment.object_store).get(blob_row.name)
    if blob_row.data is None:
        raise KeyError(blob_row.digest)
    return bytes(blob_row.data)


async def read_unverified_content(environment: Environment, blob_row: ColumnRow) -> bytes:
    """Read and decompress a blob without comparing its digest.

    Raises KeyError if its bytes are missing, and CorruptBlob if they can't be decompressed.
    """
    data = await read_stored_bytes(environment, blob_row)
    if len(data) != blob_row.stored_size:
        raise CorruptBlob(f"{len(data)} bytes are stored instead of {blob_row.stored_size}")
    if blob_row.size < THREAD_THRESHOLD:
        return decompress(blob_row.codec, data, blob_row.size)
    return await asyncio.to_thread(decompress, blob_row.codec, data, blob_row.size)


async def compute_digest(content: bytes) -> str:
    """The SHA-256 of a content; of a large one in a thread."""
    return (
        content_digest(content)
        if len(content) < THREAD_THRESHOLD
        else await asyncio.to_thread(content_digest, content)
    )
