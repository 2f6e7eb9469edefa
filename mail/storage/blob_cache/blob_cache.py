"""The blob cache of a process: reads and writes of the folder in threads, without its errors.

An error of the cache, such as a full disk, never fails a read: it is counted, logged at most once a
minute, and the object store is read.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from mail.storage.blob_cache.cache_file import (
    CacheFileReader,
    CacheFileWriter,
    DamagedCacheFile,
)
from mail.storage.blob_cache.cache_folder import BlobCacheFolder
from models.observability import metrics

log = logging.getLogger(__name__)

THREAD_COUNT = 4
MAX_CONCURRENT_WRITES = 8  # unfinished files of this process
PROBLEM_INTERVAL = 60.0  # seconds between two log lines about errors
STEP_SIZE = 1024 * 1024  # bytes that are read, verified or written in a thread at once

READS = metrics.counter(
    "merganser_blob_cache_reads",
    "Reads of objects through the blob cache: hit, miss, or damaged for a file that was removed.",
    "result",
)
WRITES = metrics.counter("merganser_blob_cache_writes", "Objects that the blob cache has stored.")
ERRORS = metrics.counter(
    "merganser_blob_cache_errors",
    "Errors of the folder of the blob cache. The object store was used instead.",
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class BlobCache:
    """The blob cache, as this process uses it."""

    def __init__(self, folder: BlobCacheFolder) -> None:
        self.folder = folder
        self._threads = ThreadPoolExecutor(THREAD_COUNT, "blob-cache")
        self._names_in_writing: set[tuple[str, str]] = set()
        self._last_problem_at = -PROBLEM_INTERVAL

    @property
    def is_writing(self) -> bool:
        """True while objects are being stored."""
        return bool(self._names_in_writing)

    async def run_in_thread(
        self,
        function: Callable[Parameters, Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        """Run a function that uses the folder in a thread, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: function(*arguments, **options)
        )

    async def read_whole(self, store_id: str, name: str) -> bytes | None:
        """Read and verify an object. None if it is not in the cache, or damaged."""
        return await self._run_or_none(self._read_whole, store_id, name)

    async def open_object(self, store_id: str, name: str, end: int) -> "CachedObject | None":
        """Open an object for reads up to a position. None if its first bytes are not cached."""
        reader = await self._open_or_none(self._open_file, store_id, name, end)
        return CachedObject(self, reader, store_id, name) if reader is not None else None

    async def try_add_whole(self, store_id: str, name: str, data: bytes) -> bool:
        """Store an object, unless it is too large or being stored. Returns True if it is stored."""
        if not self._begin_writing_unless_busy(store_id, name):
            return False
        try:
            return bool(await self._run_or_none(self._write_whole, store_id, name, data))
        finally:
            self._names_in_writing.discard((store_id, name))

    async def begin_adding(self, store_id: str, name: str, size: int) -> "ObjectInWriting | None":
        """Begin to store the first `size` bytes of an object. None if they are not to be stored."""
        if not self._begin_writing_unless_busy(store_id, name):
            return None
        writer = None
        try:
            writer = await self._open_or_none(
                self.folder.begin_file_unless_too_large, store_id, name, size, is_whole=False
            )
        finally:
            if writer is None:
                self._names_in_writing.discard((store_id, name))
        return ObjectInWriting(self, writer, store_id, name) if writer is not None else None

    async def remove_objects(self, store_id: str, names: Sequence[str]) -> None:
        """Remove objects from the cache."""
        await self._run_or_none(self.folder.remove_objects, store_id, names)

    async def close(self) -> None:
        """Wait for running calls and stop the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    def run_in_background(self, function: Callable[[], Result]) -> "Future[Result | None]":
        """Run a function in a thread, without waiting for it. After an error it returns None."""
        return self._threads.submit(lambda: self._run_and_note_error(function))

    def end_writing(self, store_id: str, name: str) -> None:
        """Allow that an object is stored again."""
        self._names_in_writing.discard((store_id, name))

    def remove_damaged(self, store_id: str, name: str) -> None:
        """Remove and count a damaged file."""
        READS.add("damaged")
        log.warning("Damaged file of the blob cache removed", extra={"object": name})
        self.folder.remove_objects(store_id, [name])

    def note_error(self, problem: Exception) -> None:
        """Count an error of the folder, and log it at most once a minute."""
        ERRORS.add()
        now = time.monotonic()
        if now - self._last_problem_at >= PROBLEM_INTERVAL:
            self._last_problem_at = now
            facts = {"problem": type(problem).__name__, "reason": str(problem)[:200]}
            log.warning("The blob cache can't be used", extra=facts)

    def _begin_writing_unless_busy(self, store_id: str, name: str) -> bool:
        key = (store_id, name)
        if key in self._names_in_writing or len(self._names_in_writing) >= MAX_CONCURRENT_WRITES:
            return False
        self._names_in_writing.add(key)
        return True

    async def _run_or_none(
        self, function: Callable[..., Result | None], *arguments: Any, **options: Any
    ) -> Result | None:
        def run() -> Result | None:
            return self._run_and_note_error(lambda: function(*arguments, **options))

        return await self.run_in_thread(run)

    async def _open_or_none(
        self, function: Callable[..., Result | None], *arguments: Any, **options: Any
    ) -> Result | None:
        """Run a function that opens a file. If the caller is cancelled, the file is closed."""

        def run() -> Result | None:
            return self._run_and_note_error(lambda: function(*arguments, **options))

        opening = self._threads.submit(run)
        try:
            return await asyncio.shield(asyncio.wrap_future(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_opened)
            raise

    def _close_opened(self, opening: "Future[Any]") -> None:
        opened = None if opening.cancelled() else opening.result()
        if isinstance(opened, CacheFileWriter):
            self.run_in_background(lambda: self.folder.drop_file(opened))
        elif opened is not None:
            opened.close()

    def _run_and_note_error(self, function: Callable[[], Result]) -> Result | None:
        try:
            return function()
        except OSError as problem:  # the object store has the bytes
            self.note_error(problem)
            return None

    def _open_file(self, store_id: str, name: str, end: int | None) -> CacheFileReader | None:
        """Open a file up to a position; None as `end` requires the whole object."""
        try:
            reader = self.folder.open_file_or_none(store_id, name)
        except DamagedCacheFile:
            self.remove_damaged(store_id, name)
            return None
        if reader is not None and (
            not reader.facts.is_whole if end is None else reader.facts.size < end
        ):
            reader.close()
            reader = None
        READS.add("miss" if reader is None else "hit")
        return reader

    def _read_whole(self, store_id: str, name: str) -> bytes | None:
        reader = self._open_file(store_id, name, None)
        if reader is None:
            return None
        try:
            return reader.read(0, reader.facts.size)
        except DamagedCacheFile:
            self.remove_damaged(store_id, name)
            return None
        finally:
            reader.close()

    def _write_whole(self, store_id: str, name: str, data: bytes) -> bool:
        writer = self.folder.begin_file_unless_too_large(store_id, name, len(data), is_whole=True)
        if writer is None:
            return False
        try:
            writer.append(data)
            is_kept = self.folder.keep_file_if_complete(store_id, writer)
        except BaseException:
            self.folder.drop_file(writer)
            raise
        if is_kept:
            WRITES.add()
        return is_kept


class CachedObject:
    """An open object of the cache."""

    def __init__(self, cache: BlobCache, reader: CacheFileReader, store_id: str, name: str) -> None:
        self._cache, self._reader = cache, reader
        self._store_id, self._name = store_id, name

    async def read_or_none(self, start: int, end: int) -> bytes | None:
        """Read and verify bytes. None if the file is damaged, which is then removed."""
        return await self._cache.run_in_thread(self._read_or_none, start, end)

    def _read_or_none(self, start: int, end: int) -> bytes | None:
        try:
            return self._reader.read(start, end)
        except DamagedCacheFile:
            try:
                self._cache.remove_damaged(self._store_id, self._name)
            except OSError as problem:
                self._cache.note_error(problem)
        except OSError as problem:
            self._cache.note_error(problem)
        return None

    def close(self) -> None:
        """Close the file in the background, since a thread can be reading it."""
        self._cache.run_in_background(self._reader.close)


class ObjectInWriting:
    """The first bytes of an object that are written to the cache while they are read."""

    def __init__(self, cache: BlobCache, writer: CacheFileWriter, store_id: str, name: str) -> None:
        self._cache, self._writer = cache, writer
        self._store_id, self._name = store_id, name

    async def append(self, data: bytes) -> None:
        """Write the next bytes. After an error the object is not kept."""
        await self._cache.run_in_thread(self._append, data)

    def _append(self, data: bytes) -> None:
        try:
            self._writer.append(data)
        except OSError as problem:
            self._cache.note_error(problem)
            self._writer.close()

    def end(self) -> "Future[bool | None]":
        """Keep the object if all bytes were written, else remove it, in the background.

        The result is True if it is kept.
        """
        return self._cache.run_in_background(self._keep_if_complete)

    def _keep_if_complete(self) -> bool:
        try:
            is_kept = self._cache.folder.keep_file_if_complete(self._store_id, self._writer)
        finally:
            self._cache.end_writing(self._store_id, self._name)
        if is_kept:
            WRITES.add()
        return is_kept
