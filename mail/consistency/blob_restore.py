"""Restoring of damaged blobs from other stored copies of the same bytes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress

from sqlalchemy import select, update
from sqlmodel import col

from mail.consistency.blob_content import ABOUT, content
from mail.storage.blobs.blob_writer import INLINE
from mail.storage.blobs.compression import compress, expand, verify
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.object_stores import object_name
from models.files.blobs import COLD, Blob
from models.runtime.environment import World
from models.store.columns import Picked

ROWS = 1000  # rows that one statement reads or writes
COLUMNS = (*ABOUT, col(Blob.data), col(Blob.damaged_at))


async def restore(world: World, keys: Sequence[int]) -> set[int]:
    """Restore damaged blobs; return the ids of those that were restored.

    The copies are blobs of other tenants and all objects with the digest in their names. A copy
    is used only if its bytes have the digest. Blobs without such a copy are marked as damaged:
    the next message with the same bytes stores them again.
    """
    restored = set[int]()
    objects = await _objects_by_digest(world, keys)
    async for row in _read_rows(world, keys):
        if (copy := await _find_copy(world, row, objects[row.digest])) is not None:
            await _store_copy(world, row, copy)
            restored.add(row.id)
    await _mark(world, [key for key in keys if key not in restored], damaged=True)
    return restored


async def clear_marks(world: World, damaged: Collection[int]) -> None:
    """Clear the damage mark of all blobs but these."""
    asked = select(col(Blob.id)).where(col(Blob.damaged_at).is_not(None))
    marked = [row.id for row in await world.database.read(asked)]
    await _mark(world, [key for key in marked if key not in damaged], damaged=False)


async def _read_rows(world: World, keys: Sequence[int]) -> AsyncIterator[Picked]:
    for key in keys:  # one at a time: a row can hold 256 KiB
        for row in await world.database.read(select(*COLUMNS).where(col(Blob.id) == key)):
            yield row


async def _objects_by_digest(world: World, keys: Sequence[int]) -> Mapping[str, list[str]]:
    """The names of all objects, those in use too, by the digests of these blobs."""
    names, digests = defaultdict[str, list[str]](list), set[str]()
    for start in range(0, len(keys), ROWS):
        asked = select(col(Blob.digest)).where(col(Blob.id).in_(keys[start : start + ROWS]))
        digests |= {row.digest for row in await world.database.read(asked)}
    if digests:
        async for stored in world.blobs.list():
            digest = stored.name.partition("/")[2].partition(".")[0]
            if digest in digests:
                names[digest].append(stored.name)
    return names


async def _find_copy(world: World, row: Picked, objects: Sequence[str]) -> bytes | None:
    """The bytes of an intact copy of a blob, or None."""
    same = select(*COLUMNS).where(col(Blob.digest) == row.digest, col(Blob.id) != row.id)
    for other in await world.database.read(same):
        with suppress(KeyError, Corrupt):
            return await asyncio.to_thread(verify, row.digest, await content(world, other))
    for name in objects:
        with suppress(KeyError, Corrupt):
            packed = await world.blobs.get(name)
            return await asyncio.to_thread(_verified, row, packed)
    return None


def _verified(row: Picked, packed: bytes) -> bytes:
    """Decompress an object with any codec. Raises CorruptBlob if it does not have the digest."""
    with suppress(Corrupt):
        return verify(row.digest, expand("zstd", packed, row.size))
    return verify(row.digest, expand("raw", packed, row.size))


async def _store_copy(world: World, row: Picked, copy: bytes) -> None:
    codec, packed = await asyncio.to_thread(compress, copy)
    name = None
    if row.name is not None or len(packed) > INLINE:
        end = COLD if (row.name or "").endswith(COLD) else ""
        name = object_name(row.digest, world.key()) + end
        await world.blobs.put(name, packed)
    same = col(Blob.name).is_(None) if row.name is None else col(Blob.name) == row.name
    values = {
        "codec": codec,
        "stored_size": len(packed),
        "name": name,
        "data": packed if name is None else None,
        "damaged_at": None,
    }
    stored = update(Blob).where(col(Blob.id) == row.id, same).values(**values)
    async with world.write() as session:
        await (await session.connection()).execute(stored)


async def _mark(world: World, keys: Sequence[int], *, damaged: bool) -> None:
    at = world.now() if damaged else None
    for start in range(0, len(keys), ROWS):
        these = col(Blob.id).in_(keys[start : start + ROWS])
        async with world.write() as session:
            marked = update(Blob).where(these).values(damaged_at=at)
            await (await session.connection()).execute(marked)
