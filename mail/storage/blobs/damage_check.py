"""Checks that stored blobs are intact, before the first byte of a download is sent.

A response that has begun with status 200 can only be cut off. A blob is read and verified once; for
an hour after that only its size in the object store is compared, so that the next download begins
at once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import aclosing
from weakref import WeakKeyDictionary

from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import CorruptBlob
from models.files.damage_marks import is_object_known_damaged
from models.store.columns import ColumnRow
from models.store.object_store import ObjectStoreProtocol

INTACT_SECONDS = 3600.0  # seconds
MAX_INTACT_OBJECTS = 10_000  # objects of one store
MAX_VERIFIED_BYTES = 64 << 20  # bytes of the blobs of one download that are read before it begins
CONCURRENT_SIZE_CHECKS = 16  # size requests at the same time


class IntactObjects:
    """The names of the objects of a store that were verified in the last hour."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, name: str) -> None:
        """Record that an object was verified now."""
        self._until.pop(name, None)
        self._until[name] = time.monotonic() + INTACT_SECONDS
        if len(self._until) > MAX_INTACT_OBJECTS:
            self._until.popitem(last=False)

    def __contains__(self, name: str) -> bool:
        return self._until.get(name, 0.0) > time.monotonic()


_INTACT_BY_STORE: WeakKeyDictionary[ObjectStoreProtocol, IntactObjects] = WeakKeyDictionary()


async def require_intact_blob(store: ObjectStoreProtocol, blob: ColumnRow) -> None:
    """Raise CorruptBlob if a blob is lost or damaged. Holds at most 1 MiB of it in memory."""
    intact = _INTACT_BY_STORE.setdefault(store, IntactObjects())
    is_verified = blob.name in intact and not is_object_known_damaged(store, blob.name)
    if is_verified and await store.size(blob.name) == blob.stored_size:
        return
    async with aclosing(blob_reader.stream_content(store, blob)) as steps:
        async for _ in steps:
            await asyncio.sleep(0)  # let other requests run
    if blob.name is not None:
        intact.add(blob.name)


async def require_intact_blobs_and_return_budget(
    store: ObjectStoreProtocol, blobs: Iterable[ColumnRow], byte_budget: int = MAX_VERIFIED_BYTES
) -> int:
    """Raise CorruptBlob if one of the blobs is lost or damaged; return the rest of the budget.

    Blobs up to the budget are read and verified. Of the others only the size of the object is
    compared.
    """
    unread: list[ColumnRow] = []
    for blob in blobs:
        if blob.size <= byte_budget:
            await require_intact_blob(store, blob)
            byte_budget -= blob.size
        elif blob.name is not None:
            unread.append(blob)
    for at in range(0, len(unread), CONCURRENT_SIZE_CHECKS):
        await asyncio.gather(
            *(
                _require_object_size(store, blob)
                for blob in unread[at : at + CONCURRENT_SIZE_CHECKS]
            )
        )
    return byte_budget


async def _require_object_size(store: ObjectStoreProtocol, blob: ColumnRow) -> None:
    if await store.size(blob.name) != blob.stored_size:
        raise CorruptBlob(f"The object {blob.name} of {blob.digest} is lost, or has another size")
