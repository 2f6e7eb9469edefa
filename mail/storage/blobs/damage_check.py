"""Checks that stored pieces are intact, before the first byte of a download is sent.

An answer that has begun with 200 can only be cut off. A piece is read and verified once; for an
hour after that its size in the store is compared, so that the next download begins at once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import aclosing
from weakref import WeakKeyDictionary

from mail.storage.blobs import blob_reader
from mail.storage.blobs.errors import Corrupt
from models.store.columns import Picked
from models.store.object_store import Store

KNOWN_FOR = 3600.0  # seconds
MOST_KNOWN = 10_000  # objects of one store
BUDGET = 64 << 20  # bytes of a long sequence of pieces that are read before its download
AT_ONCE = 16  # objects whose size is asked for at once


class IntactObjects:
    """The objects of a store that were verified in the last hour, by name."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, name: str) -> None:
        """Note that an object was verified now."""
        self._until.pop(name, None)
        self._until[name] = time.monotonic() + KNOWN_FOR
        if len(self._until) > MOST_KNOWN:
            self._until.popitem(last=False)

    def __contains__(self, name: str) -> bool:
        return self._until.get(name, 0.0) > time.monotonic()


_INTACT: WeakKeyDictionary[Store, IntactObjects] = WeakKeyDictionary()


async def check_piece(store: Store, blob: Picked) -> None:
    """Raise Corrupt if a piece is lost or damaged. Holds at most 1 MiB of it."""
    intact = _INTACT.setdefault(store, IntactObjects())
    if blob.name in intact and await store.size(blob.name) == blob.stored_size:
        return
    async with aclosing(blob_reader.stream(store, blob)) as steps:
        async for _ in steps:
            await asyncio.sleep(0)  # other requests go on
    if blob.name is not None:
        intact.add(blob.name)


async def check_pieces(store: Store, blobs: Iterable[Picked], budget: int = BUDGET) -> int:
    """Raise Corrupt if one of many pieces is lost or damaged; return what is left of the budget.

    Pieces beyond the budget must have their size in the store, and are not read.
    """
    unread: list[Picked] = []
    for blob in blobs:
        if blob.size <= budget:
            await check_piece(store, blob)
            budget -= blob.size
        elif blob.name is not None:
            unread.append(blob)
    for at in range(0, len(unread), AT_ONCE):
        await asyncio.gather(*(_check_size(store, blob) for blob in unread[at : at + AT_ONCE]))
    return budget


async def _check_size(store: Store, blob: Picked) -> None:
    if await store.size(blob.name) != blob.stored_size:
        raise Corrupt(f"The object {blob.name} of {blob.digest} is lost, or has another size")
