"""A remote object store with the blob cache in front of it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path

from mail.storage.blob_cache.blob_cache import STEP_SIZE, BlobCache
from mail.storage.blob_cache.cache_folder import is_cacheable_name
from mail.storage.blobs.tiered_store import TieredStore
from models.store.object_store import (
    BrowsableObjectStore,
    ObjectRange,
    ObjectStoreProtocol,
    StoredObject,
)


class CachedStore:
    """An object store that reads its objects from the cache, if they are there.

    An object gets into the cache when it is read as a whole or from its beginning. Objects with
    other names than those of blobs can change, and are not kept. An object that was deleted while
    it got into the cache is removed again.
    """

    def __init__(self, store: BrowsableObjectStore, cache: BlobCache, store_id: str) -> None:
        self.store = store
        self.cache = cache
        self.store_id = store_id
        self._checks = set[asyncio.Task[None]]()  # of objects that were kept a moment ago

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""
        await self.store.put(name, data)

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""
        await self.store.put_file(name, path)

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        if not is_cacheable_name(name):
            return await self.store.get(name)
        data = await self.cache.read_whole(self.store_id, name)
        if data is None:
            data = await self.store.get(name)
            if await self.cache.try_add_whole(self.store_id, name, data):
                await self._remove_if_deleted(name)
        return data

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but without, `end`. Does not fill the cache."""
        if is_cacheable_name(name) and start < end:
            cached = await self.cache.open_object(self.store_id, name, end)
            if cached is not None:
                try:
                    if (data := await cached.read_or_none(start, end)) is not None:
                        return data
                finally:
                    cached.close()
        return await self.store.get_range(name, start, end)

    async def size(self, name: str) -> int | None:
        """Return the size of an object in the store in bytes, or None if it does not exist."""
        return await self.store.size(name)

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB.

        Bytes from the beginning of the object get into the cache when all were read.
        """
        if is_cacheable_name(name) and start < end:
            cached = await self.cache.open_object(self.store_id, name, end)
            if cached is not None:
                try:
                    while start < end:
                        stop = min((start // STEP_SIZE + 1) * STEP_SIZE, end)
                        data = await cached.read_or_none(start, stop)
                        if data is None:
                            break  # the store has the rest
                        start = stop
                        yield data
                finally:
                    cached.close()
            elif start == 0:
                async with aclosing(self._stream_and_add(name, end)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
        if start < end:
            async with aclosing(self.store.stream(name, start, end)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _stream_and_add(self, name: str, end: int) -> AsyncGenerator[bytes]:
        writing = await self.cache.begin_adding(self.store_id, name, end)
        try:
            async with aclosing(self.store.stream(name, 0, end)) as chunks:
                async for chunk in chunks:
                    if writing is not None:
                        await writing.append(chunk)
                    yield chunk
        finally:
            if writing is not None:
                check = asyncio.create_task(self._check_after(writing.end(), name))
                self._checks.add(check)
                check.add_done_callback(self._checks.discard)

    async def _check_after(self, keeping: "Future[bool | None]", name: str) -> None:
        if await asyncio.wrap_future(keeping):
            await self._remove_if_deleted(name)

    async def _remove_if_deleted(self, name: str) -> None:
        """Remove an object from the cache if the store no longer has it, or doesn't answer.

        Its deletion can have looked for it in the cache before it got there. A deletion that
        follows finds it.
        """
        try:
            if await self.store.size(name) is not None:
                return
        except Exception as problem:  # noqa: BLE001 - errors of any store; nothing is lost
            self.cache.note_error(problem)
        await self.cache.remove_objects(self.store_id, [name])

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects, also from the cache of this machine. A missing object is no error."""
        await self.store.delete(names)
        await self.cache.remove_objects(self.store_id, names)

    async def find(self, name: str) -> StoredObject | None:
        """Return the entry of an object with its version, or None if it does not exist."""
        return await self.store.find(name)

    async def list_page(self, object_range: ObjectRange) -> Sequence[StoredObject]:
        """List visible objects in the order of their names, with constant memory."""
        return await self.store.list_page(object_range)

    async def list_folders(self, object_range: ObjectRange) -> Sequence[str]:
        """List the folders directly below the prefix of a range, with a slash at their end."""
        return await self.store.list_folders(object_range)

    async def list(self) -> AsyncIterator[StoredObject]:
        """Yield all objects except those of administrators."""
        async for stored in self.store.list():
            yield stored

    async def close(self) -> None:
        """Close the store. The cache can belong to several stores and stays open."""
        await self.wait_for_checks()
        await self.store.close()

    async def wait_for_checks(self) -> None:
        """Wait until no check runs whether the store still has an object that was just cached."""
        if self._checks:
            await asyncio.wait(self._checks)


def store_without_cache(store: ObjectStoreProtocol) -> ObjectStoreProtocol:
    """Return the store that reads the objects themselves, for checks of the stored bytes."""
    if isinstance(store, TieredStore):
        return TieredStore(store_without_cache(store.hot), store_without_cache(store.cold))
    return store.store if isinstance(store, CachedStore) else store


async def forget_object_if_store_has_cache(store: ObjectStoreProtocol, name: str) -> bool:
    """Remove an object from the cache. False if the store has no cache."""
    cache = blob_cache_of_store(store)
    if cache is None:
        return False
    stores = (store.hot, store.cold) if isinstance(store, TieredStore) else (store,)
    for one in stores:
        if isinstance(one, CachedStore):
            await cache.remove_objects(one.store_id, [name])
    return True


def blob_cache_of_store(store: ObjectStoreProtocol) -> BlobCache | None:
    """Return the blob cache that an object store uses, or None."""
    if isinstance(store, TieredStore):
        return blob_cache_of_store(store.hot) or blob_cache_of_store(store.cold)
    return store.cache if isinstance(store, CachedStore) else None
