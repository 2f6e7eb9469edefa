"""Files of unfinished uploads, which survive broken connections and restarts."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NAME_PREFIX = "upload-"  # of file names; the key follows in hex
HASH_CHUNK = 1024 * 1024  # bytes
STAT_BLOCK_BYTES = 512  # bytes in the unit of `st_blocks`


class FileInUseError(Exception):
    """Another request appends to the file, here or in another process of the machine."""


class UploadBytesLostError(Exception):
    """Acknowledged bytes are neither in the file nor in the object store."""


class ResumableFile:
    """A file that grows, with its lock: one writer at a time.

    The methods wait for the disk, so call them in threads. A canceled call may still run in its
    thread when the next call begins or the file is closed.
    """

    def __init__(self, folder: Path, key: int) -> None:
        self.path = file_path(folder, key)
        self.size = 0
        self._handle = -1
        self._lock = threading.Lock()
        self._named = False  # the name of the file is on the disk

    def __enter__(self) -> "ResumableFile":
        """Open the file, and create it if it is missing.

        Raises FileInUseError if another writer has it open.
        """
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise FileInUseError from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            os.close(self._handle)  # releases the lock too
            self._handle = -1

    def truncate_and_resume_at(self, size: int) -> None:
        """Append after `size` bytes. Later bytes were never acknowledged and are removed.

        Raises UploadBytesLostError if the file is shorter.
        """
        with self._lock:
            if (file_size := os.fstat(self._handle).st_size) < size:
                raise UploadBytesLostError(f"The file ends at {file_size}.")
            os.ftruncate(self._handle, size)
            self.size, self._named = size, size > 0

    def resume_at_allowing_missing_bytes(self, size: int) -> None:
        """Append after `size` bytes that may be missing and can be written later."""
        with self._lock:
            os.ftruncate(self._handle, size)
            self.size = size

    def append(self, data: bytes | bytearray) -> None:
        """Append bytes. If the disk is full, as many as fit are written before the OSError."""
        with self._lock, memoryview(data) as rest:
            written_count = 0
            while written_count < len(rest):
                count = os.pwrite(self._handle, rest[written_count:], self.size)
                self.size += count
                written_count += count

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`.

        Raises UploadBytesLostError if the file is shorter.
        """
        parts = list[bytes]()
        with self._lock:
            while start < end:
                part = os.pread(self._handle, end - start, start)
                if not part:
                    raise UploadBytesLostError(f"The file ends at {start}.")
                parts.append(part)
                start += len(part)
        return b"".join(parts)

    def write(self, start: int, data: bytes) -> None:
        """Overwrite the bytes from `start` on."""
        with self._lock, memoryview(data) as rest:
            written_count = 0
            while written_count < len(rest):
                written_count += os.pwrite(
                    self._handle, rest[written_count:], start + written_count
                )

    def update_hashes(self, start: int, end: int, *hashes: "hashlib._Hash") -> None:
        """Add the bytes from `start` to before `end` to each of the hashes.

        Raises UploadBytesLostError if the file is shorter.
        """
        for at in range(start, end, HASH_CHUNK):
            chunk = self.read(at, min(at + HASH_CHUNK, end))
            for hash_ in hashes:
                hash_.update(chunk)

    def sync(self) -> None:
        """Wait until the bytes and the name of the file are on the disk."""
        with self._lock:
            os.fsync(self._handle)
            if not self._named:
                sync_folder(self.path.parent)
                self._named = True


def file_path(folder: Path, key: int) -> Path:
    """Return the path of the file with a key."""
    return folder / f"{NAME_PREFIX}{key:x}"


def file_size(folder: Path, key: int) -> int:
    """Return the number of bytes of the file, 0 if there is no file."""
    try:
        return file_path(folder, key).stat().st_size
    except FileNotFoundError:
        return 0


def disk_use(folder: Path, key: int) -> int:
    """Bytes of the disk that the file takes; 0 if there is no file."""
    try:
        return file_path(folder, key).stat().st_blocks * STAT_BLOCK_BYTES
    except FileNotFoundError:
        return 0


def remove_file(folder: Path, key: int) -> None:
    """Remove the file with a key, if it exists."""
    file_path(folder, key).unlink(missing_ok=True)


def list_file_keys(folder: Path) -> list[int]:
    """Return the keys of all files of uploads in the folder."""
    keys = []
    for path in folder.glob(f"{NAME_PREFIX}*"):
        with suppress(ValueError):
            keys.append(int(path.name.removeprefix(NAME_PREFIX), 16))
    return keys


def remove_files_and_count_keys(folder: Path, keys: Collection[int]) -> int:
    """Remove the files with these keys, and return the number of keys."""
    for key in keys:
        remove_file(folder, key)
    return len(keys)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
