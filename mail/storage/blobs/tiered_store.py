"""A hot and a cold object store behind one interface. The name of an object tells its tier."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

from models.files.blobs import COLD_SUFFIX
from models.store.object_store import (
    BrowsableObjectStore,
    ObjectStoreProtocol,
    StoredObject,
)

HOT_NAME = "hot"  # of the object store, for administrators
COLD_NAME = "cold"  # of the second object store


class TieredStore:
    """An object store that keeps objects with a name that ends with COLD in the cold store."""

    def __init__(self, hot: ObjectStoreProtocol, cold: ObjectStoreProtocol) -> None:
        self.hot = hot
        self.cold = cold

    def _store_for(self, name: str) -> ObjectStoreProtocol:
        return self.cold if name.endswith(COLD_SUFFIX) else self.hot

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""
        await self._store_for(name).put(name, data)

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""
        await self._store_for(name).put_file(name, path)

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        return await self._store_for(name).get(name)

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but without, `end`."""
        return await self._store_for(name).get_range(name, start, end)

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        return await self._store_for(name).size(name)

    def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB."""
        return self._store_for(name).stream(name, start, end)

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. A missing object is no error."""
        for store in (self.hot, self.cold):
            names_of_store = [name for name in names if self._store_for(name) is store]
            if names_of_store:
                await store.delete(names_of_store)

    async def list(self) -> AsyncIterator[StoredObject]:
        """Yield the objects of both stores, and the remains of interrupted writes."""
        for store in (self.hot, self.cold):
            async for stored in store.list():
                yield stored

    async def close(self) -> None:
        """Close both stores."""
        await self.hot.close()
        await self.cold.close()


def browsable_stores_by_name(store: ObjectStoreProtocol) -> dict[str, BrowsableObjectStore]:
    """Return the single object stores by the names that administrators use."""
    stores = (
        {HOT_NAME: store.hot, COLD_NAME: store.cold}
        if isinstance(store, TieredStore)
        else {HOT_NAME: store}
    )
    return {name: one for name, one in stores.items() if isinstance(one, BrowsableObjectStore)}


def is_name_of_store(store: ObjectStoreProtocol, store_name: str, object_name: str) -> bool:
    """True if a row with this object name means the object in the single store of that name."""
    is_cold = object_name.endswith(COLD_SUFFIX)
    return not isinstance(store, TieredStore) or is_cold == (store_name == COLD_NAME)
