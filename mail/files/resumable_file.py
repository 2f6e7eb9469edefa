"""Files that arrive in pieces, over breaks of the line and restarts of ours."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType

MARK = "upload-"  # names of our files begin with it, their key follows in hex
CHUNK = 1024 * 1024  # bytes that are hashed at once
BLOCK = 512  # bytes in the unit of `st_blocks`


class Busy(Exception):
    """Somebody else appends to the file, here or in another process of the machine."""


class Lost(Exception):
    """Bytes that were promised are neither in the file nor in the object store."""


class Arriving:
    """A file that grows, and the lock on it: one writer at a time.

    What it does waits for the disk, so it is for threads; one that was given up may still be
    at it when the next comes, or when the file is closed.
    """

    def __init__(self, folder: Path, key: int) -> None:
        self.path = path_of(folder, key)
        self.size = 0
        self._handle = -1
        self._lock = threading.Lock()
        self._named = False  # its name is known to be on the disk

    def __enter__(self) -> "Arriving":
        """Open the file, which is made where it is not there. Busy where it is being written."""
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise Busy from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            os.close(self._handle)  # and so the lock of the file is gone
            self._handle = -1

    def go_on(self, size: int) -> None:
        """Append behind these bytes: what came later was promised to nobody. Lost."""
        with self._lock:
            if (found := os.fstat(self._handle).st_size) < size:
                raise Lost(f"the file ends at {found}")
            os.ftruncate(self._handle, size)
            self.size, self._named = size, size > 0

    def go_on_without(self, size: int) -> None:
        """Append behind these bytes, which need not be in the file: they can be written later."""
        with self._lock:
            os.ftruncate(self._handle, size)
            self.size = size

    def append(self, piece: bytes | bytearray) -> None:
        """Add these bytes, all of them or, where the disk is full, as many as go in."""
        with self._lock, memoryview(piece) as rest:
            done = 0
            while done < len(rest):
                written = os.pwrite(self._handle, rest[done:], self.size)
                self.size += written
                done += written

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, not with, `end`. Lost where the file is shorter."""
        parts = list[bytes]()
        with self._lock:
            while start < end:
                part = os.pread(self._handle, end - start, start)
                if not part:
                    raise Lost(f"the file ends at {start}")
                parts.append(part)
                start += len(part)
        return b"".join(parts)

    def write(self, start: int, piece: bytes) -> None:
        """Replace the bytes from `start` on."""
        with self._lock, memoryview(piece) as rest:
            done = 0
            while done < len(rest):
                done += os.pwrite(self._handle, rest[done:], start + done)

    def hash(self, start: int, end: int, *hashes: "hashlib._Hash") -> None:
        """Add these bytes to each of the hashes. Lost where the file is shorter."""
        for at in range(start, end, CHUNK):
            chunk = self.read(at, min(at + CHUNK, end))
            for each in hashes:
                each.update(chunk)

    def sync(self) -> None:
        """Wait until the bytes, and the name of the file, are on the disk."""
        with self._lock:
            os.fsync(self._handle)
            if not self._named:
                sync_folder(self.path.parent)
                self._named = True


def path_of(folder: Path, key: int) -> Path:
    """Where the bytes with this key arrive."""
    return folder / f"{MARK}{key:x}"


def size_of(folder: Path, key: int) -> int:
    """How many bytes of it are there; 0 where there is no file."""
    try:
        return path_of(folder, key).stat().st_size
    except FileNotFoundError:
        return 0


def disk_use(folder: Path, key: int) -> int:
    """Bytes of the disk that the file takes; 0 if there is no file."""
    try:
        return path_of(folder, key).stat().st_blocks * BLOCK
    except FileNotFoundError:
        return 0


def remove(folder: Path, key: int) -> None:
    """Forget what has arrived."""
    path_of(folder, key).unlink(missing_ok=True)


def arrived(folder: Path) -> list[int]:
    """The keys of all files of ours that are there."""
    found = []
    for path in folder.glob(f"{MARK}*"):
        with suppress(ValueError):
            found.append(int(path.name.removeprefix(MARK), 16))
    return found


def sweep(folder: Path, keys: Collection[int]) -> int:
    """Remove the files with these keys; how many."""
    for key in keys:
        remove(folder, key)
    return len(keys)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
