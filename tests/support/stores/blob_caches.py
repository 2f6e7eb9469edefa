"""A bucket with a blob cache in front of it, and its files."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail.storage.blob_cache.blob_cache import BlobCache
from mail.storage.blob_cache.cache_folder import BlobCacheFolder, store_id_from_url
from mail.storage.blob_cache.cached_store import CachedStore
from mail.storage.blobs.object_stores import BucketStore, new_object_name

MIB = 1 << 20
STORE_ID = store_id_from_url("s3://bucket")


def content_with_name(size: int, key: int = 1) -> tuple[str, bytes]:
    """Return the name of an object with random bytes, and these."""
    content = os.urandom(size)
    return new_object_name(hashlib.sha256(content).hexdigest(), key), content


@dataclass(frozen=True)
class CachedBucket:
    """A bucket, and the store that reads it through a blob cache."""

    bucket: BucketStore
    store: CachedStore
    folder: Path

    @classmethod
    def open(cls, bucket: BucketStore, folder: Path, max_size: int = 64 * MIB) -> "CachedBucket":
        """Open the cache in a folder as a server does."""
        cache = BlobCache(BlobCacheFolder(folder, max_size))
        return cls(bucket, CachedStore(bucket, cache, STORE_ID), folder)

    def reopen(self) -> "CachedBucket":
        """Open the cache as another process does."""
        return self.open(self.bucket, self.folder, self.store.cache.folder.max_size)

    def object_files(self) -> Sequence[Path]:
        """Return the files of objects."""
        return [file.path for file in self.store.cache.folder.list_files()]

    async def put(self, size: int, key: int = 1) -> tuple[str, bytes]:
        """Store random bytes in the bucket, and return the name of the object and the bytes."""
        name, content = content_with_name(size, key)
        await self.bucket.put(name, content)
        return name, content

    async def read_stream(self, name: str, start: int, end: int) -> bytes:
        """Read a range through the cache, and wait until the cache has stored it."""
        chunks = [chunk async for chunk in self.store.stream(name, start, end)]
        await self.wait_for_writes()
        return b"".join(chunks)

    async def wait_for_writes(self) -> None:
        """Wait until the threads and the checks of the cache have ended their work."""
        for _ in range(8):
            await self.store.cache.run_in_thread(int)
        while self.store.cache.is_writing:
            await self.store.cache.run_in_thread(int)
        await self.store.wait_for_checks()
