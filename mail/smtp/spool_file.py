"""Receive a message: remove dot-stuffing, count bytes, and move large messages to disk."""

import fcntl
import os
import shutil
import tempfile
import threading
from asyncio import to_thread
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from models.store.outages import NO_SPACE_ERRNOS

END_OF_DATA = b"\r\n.\r\n"
MAX_LINE = 1 << 20  # bytes; generous, since some servers join lines
MAX_IN_MEMORY = 1 << 20  # bytes of a message that are kept in memory
FILE_PREFIX = "incoming-"  # of spool files


class OutOfSpoolSpace(Exception):
    """The byte budget is used up, or the disk is full."""


@dataclass(slots=True)
class ByteBudget:
    """The number of bytes of all messages being received, in memory and on disk."""

    limit: int
    used: int = 0

    def reserve(self, byte_count: int) -> None:
        """Reserve bytes. Raises OutOfSpoolSpace and reserves none if they don't fit."""
        if not self.fits(byte_count):
            raise OutOfSpoolSpace
        self.used += byte_count

    def release(self, byte_count: int) -> None:
        """Release reserved bytes."""
        self.used -= byte_count

    def fits(self, byte_count: int) -> bool:
        """Return True if that many more bytes are within the limit."""
        return self.used + byte_count <= self.limit


class DataParser:
    """A parser of the data after DATA, in pieces (RFC 5321, sections 4.1.1.4 and 4.5.2).

    Only CRLF, dot, CRLF ends the data. A parser that accepts a bare CR or LF as the end of a line
    can be tricked into seeing two messages (SMTP smuggling).
    """

    def __init__(self) -> None:
        self.has_ended = False
        self.has_long_line = False  # a line had more than MAX_LINE bytes
        self._pending = END_OF_DATA[:2]  # the CRLF of the command counts: a dot can follow at once
        self._has_data = False
        self._line_size = 0  # bytes of the current line

    def split_at_end_of_data(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the message bytes of this piece, and the bytes after the end of the data.

        A piece must be shorter than MAX_LINE, so that a line that is too long is noticed.
        """
        seen = self._pending + data
        end = seen.find(END_OF_DATA)
        self.has_ended = end >= 0
        data_end = end + 2 if self.has_ended else len(seen) - _size_of_partial_end(seen)
        self._pending = seen[data_end:]
        added = seen[:data_end].replace(b"\r\n.", b"\r\n")
        if added and not self._has_data:
            self._has_data = True
            added = added[2:]
        self._note_long_line(added)
        return added, self._pending[3:] if self.has_ended else b""

    def _note_long_line(self, data: bytes) -> None:
        """Measure the current line and note one that is too long."""
        first = data.find(b"\n")
        self._line_size += len(data) if first < 0 else first + 1
        self.has_long_line = self.has_long_line or self._line_size > MAX_LINE
        if first >= 0:
            self._line_size = len(data) - 1 - data.rfind(b"\n")


def _size_of_partial_end(data: bytes) -> int:
    """Return how many of the last bytes can be the beginning of END_OF_DATA."""
    return next((size for size in (4, 3, 2, 1) if data.endswith(END_OF_DATA[:size])), 0)


class SpoolFile:
    """A message that is being received. Leaving `with` discards it."""

    def __init__(self, folder: Path, budget: ByteBudget) -> None:
        self.size = 0
        self._folder = folder
        self._budget = budget
        self._memory = bytearray()  # not yet on disk
        self._file: IO[bytes] | None = None
        self._is_discarded = False
        self._lock = threading.Lock()  # a thread can still write while the file is discarded

    def __enter__(self) -> "SpoolFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    async def append(self, data: bytes) -> None:
        """Append bytes. Raises OutOfSpoolSpace if the budget or the disk is exceeded."""
        self._budget.reserve(len(data))
        self.size += len(data)
        self._memory += data
        if len(self._memory) > MAX_IN_MEMORY:
            await self._write_to_disk()

    async def raw_message(self) -> bytes | Path:
        """Return the whole message, or the path of the file that holds it."""
        if self._file is None:
            return bytes(self._memory)
        await self._write_to_disk()
        return Path(self._file.name)

    def discard(self) -> None:
        """Delete the message with its file and release its bytes. Repeated calls have no effect."""
        with self._lock:
            self._is_discarded = True
            if self._file is not None:
                self._file.close()
                spool_path = Path(self._file.name)
                spool_path.unlink(missing_ok=True)
                for path in spool_path.parent.glob(
                    f"{spool_path.name}.*"
                ):  # parts that the MIME parser wrote
                    path.unlink(missing_ok=True)
                self._file = None
        self._memory = bytearray()
        self._budget.release(self.size)
        self.size = 0

    async def _write_to_disk(self) -> None:
        """Write the bytes in memory to the file."""
        part, self._memory = self._memory, bytearray()
        try:
            await to_thread(self._write, part)
        except OSError as error:
            if error.errno in NO_SPACE_ERRNOS:
                raise OutOfSpoolSpace from error
            raise

    def _write(self, data: bytearray) -> None:
        """Append to the file; creates it first. Runs in a thread."""
        with self._lock:
            if self._is_discarded:
                return
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - discard closes it
                    dir=self._folder, prefix=FILE_PREFIX, buffering=0, delete=False
                )
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]


def free_disk_bytes(folder: Path) -> int:
    """Return the bytes that are free on the disk of this folder."""
    return shutil.disk_usage(folder).free


def lock_and_clean_spool_folder(folder: Path) -> int:
    """Create and lock the spool folder; return the file descriptor of the lock.

    Files that a crash has left are removed, unless another process holds the lock: they can be its
    own. The caller closes the descriptor at the end.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.glob(f"{FILE_PREFIX}*"):
            left.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle
