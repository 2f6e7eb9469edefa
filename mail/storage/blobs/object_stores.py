"""Object stores for large bytes: a local folder, or S3 and compatible services."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
import obstore.store
from obstore.exceptions import BaseError, GenericError

from mail.storage.blobs import bucket_listing, folder_listing
from mail.storage.blobs.errors import CorruptBlob, ObjectNameTaken
from mail.storage.blobs.measured_stores import measured_object_store
from mail.storage.blobs.object_names import (
    ADMIN_PREFIX,
    OWNER_MARK,
    PART_PREFIX,
    SHARDS,
    is_admin_name,
    validated_name,
)
from models.store.object_store import ObjectRange, ObjectStoreProtocol, StoredObject
from models.store.outage_log import OUTAGES
from models.store.outages import StorageComponent, StorageUnavailable, outage_of_disk_or_none

CHUNK_SIZE = 1024 * 1024  # most bytes that `stream` yields at once
THREAD_COUNT = 8  # they mostly wait for the disk
PART_MAX_AGE = 24 * 3600  # seconds; no put takes that long
LIST_PAGE_SIZE = 1000  # names in one answer to `list`
PART_SHARD = "00"  # the folder of unfinished files of administrators, since it is cleaned
RENAME_TRIES = 10  # the folder of an object can be deleted before the object is there
RANGE_REQUEST_SIZE = 4 * CHUNK_SIZE  # bytes of one request of a stream: few requests, little memory
RETRY_CONFIG: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
}  # after that it is an outage
# Options of the HTTP client. The library panics if they are given with those of the store.
CLIENT_OPTIONS = frozenset({
    "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type",
    "http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle", "http2_max_frame_size", "http2_only", "pool_idle_timeout",
    "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url",
    "randomize_addresses", "timeout", "user_agent",
})  # fmt: skip
CONCURRENT_UPLOADS = 4  # parts of 5 MiB that are sent at the same time
UNAVAILABLE_MESSAGE = "The object storage does not respond: retry later."

Result = TypeVar("Result")


def new_object_name(digest: str, key: int) -> str:
    """A new name for an object with this content; `key` from `World.key()` makes it unique.

    A name is never used again, so the removal of an old object can't remove a newer one with
    the same content.
    """
    return f"{digest[:2]}/{digest}.{key:x}"


def open_store(url: str) -> ObjectStoreProtocol:
    """Open the object store at a URL: a path or file:/// is a folder, all else goes to obstore.

    Settings of obstore can follow as a query, as in s3://bucket/prefix?endpoint=https://host.
    Keys belong into the environment (AWS_ACCESS_KEY_ID and so on). Raises ValueError for a
    relative file URL or a wrong option.
    """
    parts = urlsplit(url)
    if "://" not in url:
        return FolderStore(Path(url))
    if parts.scheme != "file":
        plain = parts._replace(query="").geturl()
        return BucketStore(plain, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query))))
    if parts.netloc:
        raise ValueError("A file URL must have an absolute path, such as file:///path.")
    return FolderStore(Path(unquote(parts.path)))


@measured_object_store
class FolderStore:
    """An object store in a local folder, with 256 subfolders by the first two digits of the name.

    obstore's LocalStore writes and renames, but syncs nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.absolute().parent)
        self._threads = ThreadPoolExecutor(THREAD_COUNT, "blobs")

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""

        def write_content(part: IO[bytes]) -> None:
            part.write(data)

        await self._run_in_thread(self._write_object, name, write_content)

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""

        def write_content(part: IO[bytes]) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, part, CHUNK_SIZE)

        await self._run_in_thread(self._write_object, name, write_content)

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        try:
            return await self._run_in_thread(self._path(name).read_bytes)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but without, `end`.

        Raises KeyError if the object does not exist and CorruptBlob if it ends before
        `end`.
        """
        try:
            return await self._run_in_thread(self._read_range, name, start, end)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            return (await self._run_in_thread(self._path(name).stat)).st_size
        except FileNotFoundError:
            return None

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB.

        Raises as `get_range`.
        """
        try:
            file = await self._run_in_thread(_open_at, self._path(name), start)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem
        try:
            for at in range(start, end, CHUNK_SIZE):
                wanted_size = min(CHUNK_SIZE, end - at)
                yield _require_size(
                    await self._run_in_thread(file.read, wanted_size), wanted_size, name
                )
        finally:
            file.close()

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. A missing object is no error."""
        checked = [validated_name(name) for name in names]
        await self._run_in_thread(_remove_files, self.folder, checked)

    async def find(self, name: str) -> StoredObject | None:
        """Return the entry of an object with its version, or None if it does not exist."""
        validated_name(name)
        return await self._run_in_thread(folder_listing.find_object, self.folder, name)

    async def list_page(self, object_range: ObjectRange) -> Sequence[StoredObject]:
        """List visible objects in the order of their names, with constant memory."""
        return await self._run_in_thread(folder_listing.objects_in_range, self.folder, object_range)

    async def list_folders(self, object_range: ObjectRange) -> Sequence[str]:
        """List the folders directly below the prefix of a range, with a slash at their end."""
        return await self._run_in_thread(folder_listing.folders_in_range, self.folder, object_range)

    async def list(self) -> AsyncIterator[StoredObject]:
        """Yield all objects, and the remains of writes that were interrupted over a day ago.

        Objects of administrators are left out.
        """
        for shard in await self._run_in_thread(self._existing_shards):
            for stored in await self._run_in_thread(self._list_shard, shard):
                yield stored

    async def close(self) -> None:
        """Wait for running calls and stop the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run_in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        loop = asyncio.get_running_loop()
        with _outage_guard:
            return await loop.run_in_executor(self._threads, function, *arguments)

    def _path(self, name: str) -> Path:
        return self.folder / validated_name(name)

    def _write_object(self, name: str, write_content: Callable[[IO[bytes]], None]) -> None:
        """Write an object to a temporary file, sync it and rename it."""
        path = self._path(name)
        part_folder = self.folder / PART_SHARD if is_admin_name(name) else path.parent
        self._make_folders(part_folder)
        with tempfile.NamedTemporaryFile(dir=part_folder, prefix=PART_PREFIX, delete=False) as part:
            try:
                write_content(part)
                part.flush()
                os.fsync(part.fileno())
                self._rename_whole_file(Path(part.name), path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)

    def _rename_whole_file(self, part: Path, path: Path) -> None:
        """Give a file its name. Raises ObjectNameTaken if a folder has it, or a file a parent's."""
        for is_last_try in [False] * (RENAME_TRIES - 1) + [True]:
            try:
                self._make_folders(path.parent)
                part.rename(path)
            except FileNotFoundError:
                if is_last_try:
                    raise
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as problem:
                raise ObjectNameTaken(path.relative_to(self.folder).as_posix()) from problem
            else:
                return

    def _make_folders(self, folder: Path) -> None:
        """Create a folder below that of the store, with its parents, if it is missing."""
        if not folder.is_dir() and folder != self.folder:
            self._make_folders(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)

    def _read_range(self, name: str, start: int, end: int) -> bytes:
        with _open_at(self._path(name), start) as file:
            return _require_size(file.read(end - start), end - start, name)

    def _existing_shards(self) -> Sequence[str]:
        """The names of the existing subfolders: each of the 256 costs a thread switch."""
        try:
            return sorted(SHARDS.intersection(path.name for path in self.folder.iterdir()))
        except FileNotFoundError:
            return []

    def _list_shard(self, shard: str) -> Sequence[StoredObject]:
        objects: list[StoredObject] = []
        # by the clock of the file system, not the clock of the environment
        young = time.time() - PART_MAX_AGE
        try:
            entries = os.scandir(self.folder / shard)
        except FileNotFoundError:  # removed since
            return objects
        with entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed since
                    facts = entry.stat()
                    if f"{shard}/{entry.name}" == OWNER_MARK:
                        continue
                    if facts.st_mtime < young or not entry.name.startswith(PART_PREFIX):
                        modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                        objects.append(
                            StoredObject(f"{shard}/{entry.name}", modified, facts.st_size)
                        )
        return objects


@measured_object_store
class BucketStore:
    """An object store in an S3 bucket, or in another service that obstore knows.

    Interrupted uploads stay invisible in a bucket: a lifecycle rule of the bucket must remove
    them.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self.url = url  # without options
        self._store = _open_with_options(url, options or {})

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""
        with _outage_guard:
            await self._store.put_async(
                validated_name(name), data, max_concurrency=CONCURRENT_UPLOADS
            )

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""
        with _outage_guard:
            await self._store.put_async(
                validated_name(name), path, max_concurrency=CONCURRENT_UPLOADS
            )

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        try:
            with _outage_guard:
                result = await self._store.get_async(validated_name(name))
                return bytes(await result.bytes_async())
        except FileNotFoundError as problem:
            raise KeyError(name) from problem

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but without, `end`.

        Raises KeyError if the object does not exist and CorruptBlob if it ends before
        `end`.
        """
        if start == end:
            return b""  # HTTP can't request an empty range
        try:
            with _outage_guard:
                data = await self._get_range(validated_name(name), start, end)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem
        return _require_size(bytes(data), end - start, name)

    async def _get_range(self, name: str, start: int, end: int) -> Any:
        try:
            return await self._store.get_range_async(name, start=start, end=end)
        except GenericError:
            # The error is the same for a range beyond the end and for other failures.
            if (await self._store.head_async(name))["size"] <= start:
                raise CorruptBlob(f"The object {name} ends too soon") from None
            raise

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            with _outage_guard:
                return int((await self._store.head_async(validated_name(name)))["size"])
        except FileNotFoundError:
            return None

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB.

        Raises as `get_range`.

        Each request reads one range, since a request must end in 30 s, however slow the
        client reads.
        """
        for at in range(start, end, RANGE_REQUEST_SIZE):
            data = await self.get_range(name, at, min(at + RANGE_REQUEST_SIZE, end))
            for offset in range(0, len(data), CHUNK_SIZE):
                yield data[offset : offset + CHUNK_SIZE]

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. A missing object is no error."""
        checked = [validated_name(name) for name in names]
        with _outage_guard:
            try:
                await self._store.delete_async(checked)
            except FileNotFoundError:  # some services stop at a missing object
                for name in checked:
                    with suppress(FileNotFoundError):
                        await self._store.delete_async(name)

    async def find(self, name: str) -> StoredObject | None:
        """Return the entry of an object with its version, or None if it does not exist."""
        try:
            with _outage_guard:
                facts = await self._store.head_async(validated_name(name))
        except FileNotFoundError:
            return None
        version = f"{facts['e_tag'] or ''}{facts['last_modified'].timestamp()}"
        return StoredObject(name, facts["last_modified"], facts["size"], version)

    async def list_page(self, object_range: ObjectRange) -> Sequence[StoredObject]:
        """List visible objects in the order of their names, with constant memory."""
        return await bucket_listing.objects_in_range(
            self._iterate, self._list_top_folders, object_range
        )

    async def list_folders(self, object_range: ObjectRange) -> Sequence[str]:
        """List the folders directly below the prefix of a range, with a slash at their end."""
        return await bucket_listing.folders_in_range(
            self._iterate, self._list_top_folders, object_range
        )

    async def list(self) -> AsyncIterator[StoredObject]:
        """Yield all objects except those of administrators."""
        async for stored in self._iterate(None, None):
            if stored.name != OWNER_MARK and not stored.name.startswith(ADMIN_PREFIX):
                yield stored

    async def _iterate(self, folder: str | None, after: str | None) -> AsyncGenerator[StoredObject]:
        """Yield the objects below a folder whose names follow a text."""
        pages = aiter(self._store.list(folder, offset=after, chunk_size=LIST_PAGE_SIZE))
        while True:
            with _outage_guard:
                page = await anext(pages, None)
            if page is None:
                return
            for facts in page:
                yield StoredObject(facts["path"], facts["last_modified"], facts["size"])

    async def _list_top_folders(self) -> Sequence[str]:
        with _outage_guard:
            listed = await self._store.list_with_delimiter_async(None)
        return [f"{folder}/" for folder in listed["common_prefixes"]]

    async def close(self) -> None:
        """Do nothing: obstore closes its connections."""


def _open_with_options(url: str, options: Mapping[str, str]) -> Any:
    """Open a store with options. Raises ValueError that names a wrong option."""
    try:
        return _open_url(url, options)
    except BaseError as problem:
        for name, value in options.items():
            try:
                _open_url(url, {name: value})
            except BaseError as wrong:
                reason = next(iter(str(wrong).splitlines()), "")
                raise ValueError(
                    f"The option {name!r} is invalid: {reason.rstrip('.')}."
                ) from problem
        raise


def _open_url(url: str, options: Mapping[str, str]) -> Any:
    config = {name: value for name, value in options.items() if name not in CLIENT_OPTIONS}
    client: dict[str, Any] = {name: options[name] for name in CLIENT_OPTIONS.intersection(options)}
    if options.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True  # the operator has chosen plain HTTP
    arguments: dict[str, Any] = {"config": config} if config else {}
    arguments |= {"client_options": client} if client else {}
    return obstore.store.from_url(url, retry_config=RETRY_CONFIG, **arguments)


class _OutageGuard:
    """Raises StorageUnavailable if the object storage fails or a disk is full, and counts it.

    A missing object is no failure.
    """

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, problem: BaseException | None, _trace: object
    ) -> None:
        if problem is None:
            if not OUTAGES.is_quiet:
                OUTAGES.end_outages_if_quiet(StorageComponent.BLOBS)
        elif (failure := _outage_from(problem)) is not None:
            failure.__cause__ = problem
            failure.is_noted = True
            OUTAGES.count_failure_and_log_first(failure)
            raise failure from problem


_outage_guard = _OutageGuard()  # it has no state


def _outage_from(problem: BaseException) -> StorageUnavailable | None:
    """The outage that an exception means, or None."""
    if isinstance(problem, BaseError) and not isinstance(problem, FileNotFoundError):
        return StorageUnavailable(UNAVAILABLE_MESSAGE, component=StorageComponent.BLOBS)
    if isinstance(problem, OSError):
        return outage_of_disk_or_none(problem, StorageComponent.BLOBS, UNAVAILABLE_MESSAGE)
    return None


def _require_size(data: bytes, expected_size: int, name: str) -> bytes:
    """Return the data. Raises CorruptBlob if it has not the expected size."""
    if len(data) != expected_size:
        raise CorruptBlob(f"The object {name} ends too soon")
    return data


def _open_at(path: Path, start: int) -> IO[bytes]:
    file = path.open("rb")
    file.seek(start)
    return file


def _remove_files(folder: Path, names: Sequence[str]) -> None:
    """Remove objects, and the folders of administrators that are then empty."""
    for name in names:
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            (folder / name).unlink()
        if name.startswith(ADMIN_PREFIX):
            folder_listing.delete_empty_parents(folder, name)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the name is in the folder, not in the file
    finally:
        os.close(handle)
