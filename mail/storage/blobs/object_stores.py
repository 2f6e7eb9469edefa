"""Object stores for large bytes: a local folder, or S3 and compatible services."""

import asyncio
import os
import re
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

from mail.storage.blobs.errors import Corrupt
from models.store.object_store import Store, Stored
from models.store.outage_log import OUTAGES
from models.store.outages import NO_SPACE, Component, DiskFull, StoreUnavailable

NAME = re.compile(r"[0-9a-f]{2}/(?!\.{1,2}$)[A-Za-z0-9._-]+")
MARK = "00/merganser.mark"  # names the owner of the objects: merganser/server/store/common_facts.py
SHARDS = frozenset(f"{number:02x}" for number in range(256))
PART = ".part-"  # prefix of the names of unfinished files
CHUNK = 1024 * 1024  # most bytes that `stream` yields at once
THREADS = 8  # they mostly wait for the disk
DAY = 24 * 3600  # seconds; no put takes that long
PAGE = 1000  # names in one answer to `list`
REQUEST = 4 * CHUNK  # bytes of one request of a stream: few requests, little memory
RETRIES: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
}  # after that it is an outage
# Options of the HTTP client. The library panics if they are given with those of the store.
CLIENT = frozenset({
    "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type",
    "http1_only", "http2_keep_alive_interval", "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle", "http2_max_frame_size", "http2_only", "pool_idle_timeout",
    "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url",
    "randomize_addresses", "timeout", "user_agent",
})  # fmt: skip
UPLOADS = 4  # parts of 5 MiB that are sent at the same time

Result = TypeVar("Result")


def object_name(digest: str, key: int) -> str:
    """A new name for an object with this content; `key` from `World.key()` makes it unique.

    A name is never used again, so the removal of an old object can't remove a newer one with
    the same content.
    """
    return f"{digest[:2]}/{digest}.{key:x}"


def open_store(url: str) -> Store:
    """Open the object store at a URL: a path or file:/// is a folder, all else goes to obstore.

    Settings of obstore can follow as a query, as in s3://bucket/prefix?endpoint=https://host.
    Keys belong into the environment (AWS_ACCESS_KEY_ID and so on). Raises ValueError for a
    relative file URL or a wrong option.
    """
    parts = urlsplit(url)
    if "://" not in url:
        return LocalStore(Path(url))
    if parts.scheme != "file":
        plain = parts._replace(query="").geturl()
        return ObjectStore(plain, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query))))
    if parts.netloc:
        raise ValueError("A file URL names an absolute path: file:///path")
    return LocalStore(Path(unquote(parts.path)))


class LocalStore:
    """An object store in a local folder, with 256 subfolders by the first two digits of the name.

    obstore's LocalStore writes and renames, but syncs nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.absolute().parent)
        self._threads = ThreadPoolExecutor(THREADS, "blobs")

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""

        def fill(part: IO[bytes]) -> None:
            part.write(data)

        with _failures:
            await self._run(self._put, name, fill)

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""

        def fill(part: IO[bytes]) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, part, CHUNK)

        with _failures:
            await self._run(self._put, name, fill)

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        try:
            return await self._run(self._place(name).read_bytes)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem

    async def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but without, `end`.

        Raises KeyError if the object does not exist and CorruptBlob if it ends before
        `end`.
        """
        try:
            return await self._run(self._range, name, start, end)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            return (await self._run(self._place(name).stat)).st_size
        except FileNotFoundError:
            return None

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB.

        Raises as `get_range`.
        """
        try:
            file = await self._run(_opened, self._place(name), start)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem
        try:
            for at in range(start, end, CHUNK):
                wanted = min(CHUNK, end - at)
                yield _whole(await self._run(file.read, wanted), wanted, name)
        finally:
            file.close()

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. A missing object is no error."""
        places = [self._place(name) for name in names]
        await self._run(_unlink, places)

    async def list(self) -> AsyncIterator[Stored]:
        """Yield all objects, and the remains of writes that were interrupted over a day ago."""
        for shard in await self._run(self._shards):
            for stored in await self._run(self._listed, shard):
                yield stored

    async def close(self) -> None:
        """Wait for running calls and stop the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, work: Callable[..., Result], *given: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    def _place(self, name: str) -> Path:
        return self.folder / _checked(name)

    def _put(self, name: str, fill: Callable[[IO[bytes]], None]) -> None:
        """Write an object to a temporary file, sync it and rename it."""
        place = self._place(name)
        if not place.parent.is_dir():
            place.parent.mkdir(exist_ok=True)
            _sync(self.folder)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=PART, delete=False) as part:
            try:
                fill(part)
                part.flush()
                os.fsync(part.fileno())
                Path(part.name).rename(place)  # whole or not at all
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        _sync(place.parent)

    def _range(self, name: str, start: int, end: int) -> bytes:
        with _opened(self._place(name), start) as file:
            return _whole(file.read(end - start), end - start, name)

    def _shards(self) -> Sequence[str]:
        """The names of the existing subfolders: each of the 256 costs a thread switch."""
        try:
            return sorted(SHARDS.intersection(place.name for place in self.folder.iterdir()))
        except FileNotFoundError:
            return []

    def _listed(self, shard: str) -> Sequence[Stored]:
        found: list[Stored] = []
        young = (
            time.time() - DAY
        )  # by the clock of the file system, not the clock of the environment
        try:
            entries = os.scandir(self.folder / shard)
        except FileNotFoundError:  # removed since
            return found
        with entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed since
                    facts = entry.stat()
                    if f"{shard}/{entry.name}" == MARK:
                        continue
                    if facts.st_mtime < young or not entry.name.startswith(PART):
                        modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                        found.append(Stored(f"{shard}/{entry.name}", modified, facts.st_size))
        return found


class ObjectStore:
    """An object store in an S3 bucket, or in another service that obstore knows.

    Interrupted uploads stay invisible in a bucket: a lifecycle rule of the bucket must remove
    them.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self._store = _opened_store(url, options or {})

    async def put(self, name: str, data: bytes) -> None:
        """Store `data`."""
        with _failures:
            await self._store.put_async(_checked(name), data, max_concurrency=UPLOADS)

    async def put_file(self, name: str, path: Path) -> None:
        """Store the content of a file without reading all of it into memory."""
        with _failures:
            await self._store.put_async(_checked(name), path, max_concurrency=UPLOADS)

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises KeyError if it does not exist."""
        try:
            with _failures:
                found = await self._store.get_async(_checked(name))
                return bytes(await found.bytes_async())
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
            with _failures:
                found = await self._range(_checked(name), start, end)
        except FileNotFoundError as problem:
            raise KeyError(name) from problem
        return _whole(bytes(found), end - start, name)

    async def _range(self, name: str, start: int, end: int) -> Any:
        try:
            return await self._store.get_range_async(name, start=start, end=end)
        except GenericError:
            # The error is the same for a range beyond the end and for other failures.
            if (await self._store.head_async(name))["size"] <= start:
                raise Corrupt(f"The object {name} ends too soon") from None
            raise

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            with _failures:
                return int((await self._store.head_async(_checked(name)))["size"])
        except FileNotFoundError:
            return None

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` up to `end` in chunks of at most 1 MiB.

        Raises as `get_range`.

        Each request reads one range, since a request must end in 30 s, however slow the
        client reads.
        """
        for at in range(start, end, REQUEST):
            found = await self.get_range(name, at, min(at + REQUEST, end))
            for offset in range(0, len(found), CHUNK):
                yield found[offset : offset + CHUNK]

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects. A missing object is no error."""
        checked = [_checked(name) for name in names]
        with _failures:
            try:
                await self._store.delete_async(checked)
            except FileNotFoundError:  # some services stop at a missing object
                for name in checked:
                    with suppress(FileNotFoundError):
                        await self._store.delete_async(name)

    async def list(self) -> AsyncIterator[Stored]:
        """Yield all objects."""
        pages = aiter(self._store.list(chunk_size=PAGE))
        while True:
            with _failures:
                page = await anext(pages, None)
            if page is None:
                return
            for facts in page:
                if facts["path"] != MARK:
                    yield Stored(facts["path"], facts["last_modified"], facts["size"])

    async def close(self) -> None:
        """Do nothing: obstore closes its connections."""


def _opened_store(url: str, options: Mapping[str, str]) -> Any:
    """Open a store with options. Raises ValueError that names a wrong option."""
    try:
        return _from_url(url, options)
    except BaseError as problem:
        for name, value in options.items():
            try:
                _from_url(url, {name: value})
            except BaseError as wrong:
                reason = next(iter(str(wrong).splitlines()), "")
                raise ValueError(f"the option {name!r} is wrong: {reason}") from problem
        raise


def _from_url(url: str, options: Mapping[str, str]) -> Any:
    config = {name: value for name, value in options.items() if name not in CLIENT}
    client: dict[str, Any] = {name: options[name] for name in CLIENT.intersection(options)}
    if options.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True  # the operator has chosen plain HTTP
    given: dict[str, Any] = {"config": config} if config else {}
    given |= {"client_options": client} if client else {}
    return obstore.store.from_url(url, retry_config=RETRIES, **given)


class _Failures:
    """Raises StoreUnavailable for failures of the object storage and a full disk, and counts them.

    A missing object is no failure.
    """

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, problem: BaseException | None, _trace: object
    ) -> None:
        if problem is None:
            if not OUTAGES.is_quiet:
                OUTAGES.note_success(Component.BLOBS)
        elif (failure := _failure(problem)) is not None:
            failure.__cause__ = problem
            failure.is_noted = True
            OUTAGES.note_failure(failure)
            raise failure from problem


_failures = _Failures()  # it has no state


def _failure(problem: BaseException) -> StoreUnavailable | None:
    """The outage that an exception means, or None."""
    if isinstance(problem, BaseError) and not isinstance(problem, FileNotFoundError):
        return StoreUnavailable(
            "the object storage does not answer, try again later", component=Component.BLOBS
        )
    if isinstance(problem, OSError) and problem.errno in NO_SPACE:
        return DiskFull(Component.BLOBS)
    return None


def _checked(name: str) -> str:
    """Return the name. Raises ValueError if it is no object name."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} does not name an object")
    return name


def _whole(data: bytes, wanted: int, name: str) -> bytes:
    """Return the data. Raises CorruptBlob if it has not the expected size."""
    if len(data) != wanted:
        raise Corrupt(f"The object {name} ends too soon")
    return data


def _opened(place: Path, start: int) -> IO[bytes]:
    file = place.open("rb")
    file.seek(start)
    return file


def _unlink(places: Sequence[Path]) -> None:
    for place in places:
        place.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the name is in the folder, not in the file
    finally:
        os.close(handle)
