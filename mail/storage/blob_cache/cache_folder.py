"""The folder of the blob cache, which all processes of a machine share.

A file is written under a temporary name and renamed, and a name always means the same bytes. So
readers need no lock, and a file can be removed while it is read. Changes of the total size are
made under a lock of the folder.
"""

import fcntl
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from mail.storage.blob_cache.cache_file import (
    CachedObjectFacts,
    CacheFileReader,
    CacheFileWriter,
    DamagedCacheFile,
    file_size,
)
from mail.storage.blobs.object_names import digest_in_name_or_none

MAX_FILES = 50_000  # so that a list of them takes less than a second
MAX_SHARE = 8  # an object that is larger than this part of the cache is not kept
KEPT_SHARE = 0.9  # of the size and of the files, after the removal of the least used ones
PART_MAX_AGE = 3600.0  # seconds after which an unfinished file is removed
USE_INTERVAL = 60.0  # seconds between two writes of the last use of a file
PART_PREFIX = ".part-"  # of unfinished files
MARK_NAME = ".merganser-cache"
LOCK_NAME = ".lock"
USAGE_NAME = ".usage"
RESCAN_LOCK_NAME = ".rescan"
INTERNAL_NAMES = frozenset({MARK_NAME, LOCK_NAME, USAGE_NAME, RESCAN_LOCK_NAME})
_STORE_ID = re.compile(r"[0-9a-f]{16}")


class ForeignFolder(Exception):
    """The folder has files, and is no folder of a blob cache."""


def store_id_from_url(url: str) -> str:
    """Return the name of the subfolder with the objects of the store at a URL: 16 hex digits."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def is_cacheable_name(name: str) -> bool:
    """True for the name of an object that never changes, since the name has a digest and a key."""
    return digest_in_name_or_none(name) is not None


class CachedFile(NamedTuple):
    """A file in the folder. `store_id` and `name` are empty if it is a foreign one."""

    location: str  # path of the file; a Path costs too much in a list of all files
    store_id: str
    name: str  # of the object
    size: int  # bytes of the file
    used_at: float  # seconds since 1970

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(self.location)

    @property
    def is_foreign(self) -> bool:
        """True if the cache can't have written the file."""
        return not self.name


@dataclass(frozen=True, slots=True)
class FileTotals:
    """A number of files, and their bytes."""

    count: int = 0
    size: int = 0

    def __add__(self, other: "FileTotals") -> "FileTotals":
        return FileTotals(self.count + other.count, self.size + other.size)

    def __sub__(self, other: "FileTotals") -> "FileTotals":
        return FileTotals(self.count - other.count, self.size - other.size)


@dataclass(frozen=True, slots=True)
class FolderRescan:
    """The result of a rescan: what it removed, and whether it reached the end."""

    removed: FileTotals
    is_complete: bool


class BlobCacheFolder:
    """The folder of the blob cache, with at most `max_size` bytes in files.

    Raises OSError if the folder can't be used, and ForeignFolder if it has other files.
    """

    def __init__(self, folder: Path, max_size: int) -> None:
        self.folder = folder.absolute()
        self.max_size = max_size
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.folder / MARK_NAME).exists():
            if any(entry.name not in INTERNAL_NAMES for entry in _entries(self.folder)):
                raise ForeignFolder
            _open_private_file(self.folder / MARK_NAME, os.O_WRONLY).close()
        with self._hold_lock():
            pass  # the lock file can be created

    def folder_id(self) -> str:
        """Return a text that only processes of one machine that use this folder share."""
        facts = self.folder.stat()
        return f"{socket.gethostname()}:{facts.st_dev}:{facts.st_ino}"

    def open_file_or_none(self, store_id: str, name: str) -> CacheFileReader | None:
        """Open the file of an object and set its last use. None if there is none.

        Raises DamagedCacheFile.
        """
        try:
            reader = CacheFileReader(self._path(store_id, name), name)
        except FileNotFoundError:
            return None
        now = time.time()
        if not 0 <= now - reader.used_at < USE_INTERVAL:
            try:
                reader.mark_used(now)
            except BaseException:
                reader.close()
                raise
        return reader

    def begin_file_unless_too_large(
        self, store_id: str, name: str, size: int, *, is_whole: bool
    ) -> CacheFileWriter | None:
        """Create an unfinished file with its space reserved. None if the object is too large.

        Removes the least used files if there is no room.
        """
        whole_size = file_size(size)
        if whole_size > self.max_size // MAX_SHARE:
            return None
        self._path(store_id, name)  # raises ValueError
        facts = CachedObjectFacts(size, time.time_ns() // 1000, is_whole)
        path = self.folder / f"{PART_PREFIX}{secrets.token_hex(8)}"
        with self._hold_lock():
            usage = self._read_usage_or_count()
            if usage.size + whole_size > self.max_size or usage.count >= MAX_FILES:
                max_size = int(self.max_size * KEPT_SHARE) - whole_size
                usage = self._remove_least_used_and_return_usage(
                    max_size, int(MAX_FILES * KEPT_SHARE)
                )
            writer = CacheFileWriter(path, name, facts)
            try:
                writer.reserve_space()
                self._write_usage(usage + FileTotals(1, whole_size))
            except BaseException:
                writer.close()
                path.unlink()
                raise
        return writer

    def keep_file_if_complete(self, store_id: str, writer: CacheFileWriter) -> bool:
        """Give a file its name, and return True; if bytes are missing, remove it."""
        path = self._path(store_id, writer.name)
        try:
            if not writer.finish_if_complete():
                self.drop_file(writer)
                return False
            for parent in (path.parent.parent, path.parent):
                parent.mkdir(mode=0o700, exist_ok=True)
            with self._hold_lock():
                replaced = FileTotals()
                with suppress(FileNotFoundError):
                    replaced = FileTotals(1, path.lstat().st_size)
                writer.path.rename(path)
                self._subtract_usage(replaced)
        except BaseException:
            self.drop_file(writer)
            raise
        return True

    def drop_file(self, writer: CacheFileWriter) -> None:
        """Remove an unfinished file."""
        writer.close()
        self._remove_files_and_subtract_usage([writer.path])

    def remove_objects(self, store_id: str, names: Iterable[str]) -> FileTotals:
        """Remove the files of objects. A missing one is no error."""
        paths = [self._path(store_id, name) for name in names if is_cacheable_name(name)]
        return self._remove_files_and_subtract_usage([path for path in paths if path.exists()])

    def remove_files(self, files: Iterable[CachedFile]) -> FileTotals:
        """Remove listed files, and return those that this call has removed."""
        return self._remove_files_and_subtract_usage([file.path for file in files])

    def list_files(self) -> list[CachedFile]:
        """List the files of objects, without the unfinished ones."""
        return [file for file in self._cached_and_foreign_files() if not file.is_foreign]

    def file_totals(self) -> FileTotals:
        """Return the number and the size of all files, as the last change has counted them."""
        with self._hold_lock():
            return self._read_usage_or_count()

    def rescan_and_remove_bad_files(
        self, prefix: str, stored_before: float | None, should_stop: Callable[[], bool]
    ) -> FolderRescan:
        """Remove damaged, foreign and old files, and count the size again.

        Only objects with names that begin with `prefix` are verified; foreign files are removed if
        it is empty. `stored_before` is in seconds since 1970. Does nothing while another process
        rescans the folder.
        """
        with _open_private_file(self.folder / RESCAN_LOCK_NAME, os.O_RDWR) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return FolderRescan(FileTotals(), is_complete=True)
            removed, is_complete = FileTotals(), True
            for file in self._cached_and_foreign_files():
                if should_stop():
                    is_complete = False
                    break
                is_chosen = file.name.startswith(prefix) if file.name else not prefix
                if is_chosen and not _is_intact(file, stored_before):
                    removed += self._remove_files_and_subtract_usage([file.path])
            with self._hold_lock():
                self._write_usage(_usage_of(self._scan_with_parts()))
        return FolderRescan(removed, is_complete)

    def _path(self, store_id: str, name: str) -> Path:
        """Return the path of an object's file. Raises ValueError if one of the names is wrong."""
        if not (_STORE_ID.fullmatch(store_id) and is_cacheable_name(name)):
            raise ValueError(f"{name!r} is not the name of an object of a blob.")
        return self.folder / store_id / name

    @contextmanager
    def _hold_lock(self) -> Generator[None]:
        """Hold the lock of the folder, which other processes and threads respect."""
        with _open_private_file(self.folder / LOCK_NAME, os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove_files_and_subtract_usage(self, paths: Sequence[Path]) -> FileTotals:
        removed = FileTotals()
        if not paths:
            return removed
        with self._hold_lock():
            for path in paths:
                with suppress(FileNotFoundError):
                    size = path.lstat().st_size
                    path.unlink()
                    removed += FileTotals(1, size)
            self._subtract_usage(removed)
        return removed

    def _remove_least_used_and_return_usage(self, max_size: int, max_count: int) -> FileTotals:
        """Remove the least used files and old unfinished ones, and return the rest's usage."""
        now = time.time()
        files = sorted(self._scan_with_parts(), key=lambda file: file.used_at)
        usage = _usage_of(files)
        for file in files:
            is_part = not file.name
            is_old_part = is_part and now - file.used_at > PART_MAX_AGE
            has_room = usage.size <= max_size and usage.count <= max_count
            if is_old_part or not (has_room or is_part):
                with suppress(FileNotFoundError):
                    file.path.unlink()
                usage -= FileTotals(1, file.size)
        return usage

    def _read_usage_or_count(self) -> FileTotals:
        with suppress(FileNotFoundError, ValueError):
            count, size = (self.folder / USAGE_NAME).read_text().split()
            return FileTotals(int(count), int(size))
        return _usage_of(self._scan_with_parts())

    def _subtract_usage(self, removed: FileTotals) -> None:
        if removed.count:
            left = self._read_usage_or_count() - removed
            if left.count < 0 or left.size < 0:
                left = _usage_of(self._scan_with_parts())
            self._write_usage(left)

    def _write_usage(self, usage: FileTotals) -> None:
        with _open_private_file(self.folder / USAGE_NAME, os.O_WRONLY) as file:
            # always as long, so that no byte of an older text remains
            file.write(f"{usage.count:020} {usage.size:020}\n".encode())

    def _cached_and_foreign_files(self) -> Iterator[CachedFile]:
        """Yield the files of the folder, with foreign ones and old unfinished ones."""
        for store_folder in _entries(self.folder):
            if store_folder.name in INTERNAL_NAMES:
                continue
            if not (
                _STORE_ID.fullmatch(store_folder.name)
                and store_folder.is_dir(follow_symlinks=False)
            ):
                yield from _foreign_files(store_folder)
                continue
            for shard in _entries(store_folder.path):
                if not shard.is_dir(follow_symlinks=False):
                    yield from _foreign_files(shard)
                    continue
                for entry in _entries(shard.path):
                    name = f"{shard.name}/{entry.name}"
                    if entry.is_file(follow_symlinks=False) and is_cacheable_name(name):
                        with suppress(FileNotFoundError):
                            facts = entry.stat(follow_symlinks=False)
                            yield CachedFile(
                                entry.path,
                                store_folder.name,
                                name,
                                facts.st_size,
                                facts.st_mtime,
                            )
                    else:
                        yield from _foreign_files(entry)

    def _scan_with_parts(self) -> Iterator[CachedFile]:
        """Yield the files of objects, and the unfinished ones."""
        yield from self.list_files()
        for entry in _entries(self.folder):
            if entry.name.startswith(PART_PREFIX):
                with suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    yield CachedFile(entry.path, "", "", facts.st_size, facts.st_mtime)


def _usage_of(files: Iterable[CachedFile]) -> FileTotals:
    sizes = [file.size for file in files]
    return FileTotals(len(sizes), sum(sizes))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder; none if it was removed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _foreign_files(entry: os.DirEntry[str]) -> Iterator[CachedFile]:
    """Yield a foreign file, or those in a foreign folder; unfinished files only if they are old."""
    if entry.is_dir(follow_symlinks=False):
        for inner in _entries(entry.path):
            yield from _foreign_files(inner)
        return
    with suppress(FileNotFoundError):
        facts = entry.stat(follow_symlinks=False)
        if not (entry.name.startswith(PART_PREFIX) and time.time() - facts.st_mtime < PART_MAX_AGE):
            yield CachedFile(entry.path, "", "", facts.st_size, facts.st_mtime)


def _is_intact(file: CachedFile, stored_before: float | None) -> bool:
    """True if a file is one of the cache, undamaged, and was not stored before a time.

    True also if it does not exist any more.
    """
    if file.is_foreign:
        return False
    try:
        reader = CacheFileReader(file.path, file.name)
    except FileNotFoundError:
        return True
    except DamagedCacheFile:
        return False
    try:
        if stored_before is not None and reader.facts.stored_at < stored_before * 1_000_000:
            return False
        reader.verify_all()
    except DamagedCacheFile:
        return False
    finally:
        reader.close()
    return True


def _open_private_file(path: Path, flags: int) -> FileIO:
    """Open a file that only this user can read, and create it if it is missing."""
    handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return FileIO(handle, "r+" if flags & os.O_RDWR else "w")
