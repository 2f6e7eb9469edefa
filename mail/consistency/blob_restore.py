"""Restoring of damaged blobs from other stored copies of the same bytes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress

from sqlalchemy import select, update
from sqlmodel import col

from mail.consistency.blob_content import BLOB_COLUMNS, read_unverified_content
from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.blob_writer import MAX_INLINE_BLOB
from mail.storage.blobs.compression import compress_if_smaller, decompress, verify_digest
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import new_object_name
from models.files.blobs import COLD_SUFFIX, Blob
from models.runtime.environment import Environment
from models.store.columns import ColumnRow

ROWS_PER_STATEMENT = 1000  # rows that one statement reads or writes
COLUMNS = (*BLOB_COLUMNS, col(Blob.data), col(Blob.damaged_at))


async def restore_or_mark_damaged_blobs(
    environment: Environment, blob_ids: Sequence[int]
) -> set[int]:
    """Restore damaged blobs; return the ids of those that were restored.

    The copies are blobs of other tenants and all objects with the digest in their names. A copy
    is used only if its bytes have the digest. Blobs without such a copy are marked as damaged:
    the next message with the same bytes stores them again.
    """
    restored = set[int]()
    objects = await _list_object_names_by_digest(environment, blob_ids)
    async for row in _read_blob_rows(environment, blob_ids):
        if (copy := await _find_intact_copy(environment, row, objects[row.digest])) is not None:
            await _replace_blob_content(environment, row, copy)
            restored.add(row.id)
    await mark_damaged_blobs(environment, [key for key in blob_ids if key not in restored])
    return restored


async def mark_damaged_blobs(environment: Environment, blob_ids: Sequence[int]) -> None:
    """Mark blobs as damaged: the next message with the same bytes stores them again."""
    await _set_damage_mark(environment, blob_ids, is_damaged=True)


async def clear_damage_marks_except(
    environment: Environment, damaged_blob_ids: Collection[int]
) -> None:
    """Clear the damage mark of all blobs but these."""
    statement = select(col(Blob.id)).where(col(Blob.damaged_at).is_not(None))
    marked = [row.id for row in await environment.database.read(statement)]
    await _set_damage_mark(
        environment, [key for key in marked if key not in damaged_blob_ids], is_damaged=False
    )


async def _read_blob_rows(
    environment: Environment, blob_ids: Sequence[int]
) -> AsyncIterator[ColumnRow]:
    for key in blob_ids:  # one at a time: a row can hold 256 KiB
        for row in await environment.database.read(select(*COLUMNS).where(col(Blob.id) == key)):
            yield row


async def _list_object_names_by_digest(
    environment: Environment, blob_ids: Sequence[int]
) -> Mapping[str, list[str]]:
    """The names of all objects, those in use too, by the digests of these blobs."""
    names, digests = defaultdict[str, list[str]](list), set[str]()
    for start in range(0, len(blob_ids), ROWS_PER_STATEMENT):
        statement = select(col(Blob.digest)).where(
            col(Blob.id).in_(blob_ids[start : start + ROWS_PER_STATEMENT])
        )
        digests |= {row.digest for row in await environment.database.read(statement)}
    if digests:
        async for stored in environment.object_store.list():
            digest = stored.name.partition("/")[2].partition(".")[0]
            if digest in digests:
                names[digest].append(stored.name)
    return names


async def _find_intact_copy(
    environment: Environment, blob_row: ColumnRow, object_names: Sequence[str]
) -> bytes | None:
    """The bytes of an intact copy of a blob, or None."""
    statement = select(*COLUMNS).where(
        col(Blob.digest) == blob_row.digest, col(Blob.id) != blob_row.id
    )
    for other in await environment.database.read(statement):
        with suppress(KeyError, CorruptBlob):
            return await asyncio.to_thread(
                verify_digest, blob_row.digest, await read_unverified_content(environment, other)
            )
    for name in object_names:
        with suppress(KeyError, CorruptBlob):
            packed = await store_without_cache(environment.object_store).get(name)
            return await asyncio.to_thread(_decompress_verified_object, blob_row, packed)
    return None


def _decompress_verified_object(blob_row: ColumnRow, stored_bytes: bytes) -> bytes:
    """Decompress an object with any codec. Raises CorruptBlob if it does not have the digest."""
    with suppress(CorruptBlob):
        return verify_digest(blob_row.digest, decompress("zstd", stored_bytes, blob_row.size))
    return verify_digest(blob_row.digest, decompress("raw", stored_bytes, blob_row.size))


async def _replace_blob_content(
    environment: Environment, blob_row: ColumnRow, content: bytes
) -> None:
    codec, packed = await asyncio.to_thread(compress_if_smaller, content)
    name = None
    if blob_row.name is not None or len(packed) > MAX_INLINE_BLOB:
        end = COLD_SUFFIX if (blob_row.name or "").endswith(COLD_SUFFIX) else ""
        name = new_object_name(blob_row.digest, environment.new_id()) + end
        await environment.object_store.put(name, packed)
    same_object = (
        col(Blob.name).is_(None) if blob_row.name is None else col(Blob.name) == blob_row.name
    )
    values = {
        "codec": codec,
        "stored_size": len(packed),
        "name": name,
        "data": packed if name is None else None,
        "damaged_at": None,
    }
    stored = update(Blob).where(col(Blob.id) == blob_row.id, same_object).values(**values)
    async with environment.write_session() as session:
        await (await session.connection()).execute(stored)


async def _set_damage_mark(
    environment: Environment, blob_ids: Sequence[int], *, is_damaged: bool
) -> None:
    at = environment.now() if is_damaged else None
    for start in range(0, len(blob_ids), ROWS_PER_STATEMENT):
        these = col(Blob.id).in_(blob_ids[start : start + ROWS_PER_STATEMENT])
        async with environment.write_session() as session:
            marked = update(Blob).where(these).values(damaged_at=at)
            await (await session.connection()).execute(marked)
