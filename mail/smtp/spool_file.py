"""Receive a message: remove dot-stuffing, count bytes, and move large messages to disk."""

import fcntl
import os
import tempfile
import threading
from asyncio import to_thread
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from models.store.outages import NO_SPACE

END = b"\r\n.\r\n"
LINE_MAX = 1 << 20  # bytes; generous, since some servers join lines
MEMORY = 1 << 20  # bytes of a message that are kept in memory
MARK = "incoming-"  # of spool files


class NoRoom(Exception):
    """The byte budget is used up, or the disk is full."""


@dataclass(slots=True)
class Budget:
    """The number of bytes of all messages being received, in memory and on disk."""

    limit: int
    used: int = 0

    def take(self, count: int) -> None:
        """Reserve bytes. Raises OutOfSpoolSpace and reserves none if they don't fit."""
        if not self.fits(count):
            raise NoRoom
        self.used += count

    def give(self, count: int) -> None:
        """Release reserved bytes."""
        self.used -= count

    def fits(self, count: int) -> bool:
        """Return True if that many more bytes are within the limit."""
        return self.used + count <= self.limit


class Body:
    """A parser of the data after DATA, in pieces (RFC 5321, sections 4.1.1.4 and 4.5.2).

    Only CRLF, dot, CRLF ends the data. A parser that accepts a bare CR or LF as the end of a line
    can be tricked into seeing two messages (SMTP smuggling).
    """

    def __init__(self) -> None:
        self.ended = False
        self.overlong = False  # a line had more than MAX_LINE bytes
        self._held = END[:2]  # the CRLF of the command counts: a dot can follow at once
        self._begun = False
        self._line = 0  # bytes of the current line

    def feed(self, piece: bytes) -> tuple[bytes, bytes]:
        """Return the message bytes of this piece, and the bytes after the end of the data.

        A piece must be shorter than MAX_LINE, so that a line that is too long is noticed.
        """
        seen = self._held + piece
        end = seen.find(END)
        self.ended = end >= 0
        cut = end + 2 if self.ended else len(seen) - _begun(seen)
        self._held = seen[cut:]
        added = seen[:cut].replace(b"\r\n.", b"\r\n")
        if added and not self._begun:
            self._begun = True
            added = added[2:]
        self._look(added)
        return added, self._held[3:] if self.ended else b""

    def _look(self, added: bytes) -> None:
        """Measure the current line and note one that is too long."""
        first = added.find(b"\n")
        self._line += len(added) if first < 0 else first + 1
        self.overlong = self.overlong or self._line > LINE_MAX
        if first >= 0:
            self._line = len(added) - 1 - added.rfind(b"\n")


def _begun(seen: bytes) -> int:
    """Return how many of the last bytes can be the beginning of END_OF_DATA."""
    return next((size for size in (4, 3, 2, 1) if seen.endswith(END[:size])), 0)


class Spool:
    """A message that is being received. Leaving `with` discards it."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.size = 0
        self._folder = folder
        self._budget = budget
        self._part = bytearray()  # not yet on disk
        self._file: IO[bytes] | None = None
        self._discarded = False
        self._lock = threading.Lock()  # a thread can still write while the file is discarded

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    async def add(self, piece: bytes) -> None:
        """Append bytes. Raises OutOfSpoolSpace if the budget or the disk is exceeded."""
        self._budget.take(len(piece))
        self.size += len(piece)
        self._part += piece
        if len(self._part) > MEMORY:
            await self._spill()

    async def source(self) -> bytes | Path:
        """Return the whole message, or the path of the file that holds it."""
        if self._file is None:
            return bytes(self._part)
        await self._spill()
        return Path(self._file.name)

    def discard(self) -> None:
        """Delete the message with its file and release its bytes. Repeated calls have no effect."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                place = Path(self._file.name)
                place.unlink(missing_ok=True)
                for piece in place.parent.glob(
                    f"{place.name}.*"
                ):  # parts that the MIME parser wrote
                    piece.unlink(missing_ok=True)
                self._file = None
        self._part = bytearray()
        self._budget.give(self.size)
        self.size = 0

    async def _spill(self) -> None:
        """Write the bytes in memory to the file."""
        part, self._part = self._part, bytearray()
        try:
            await to_thread(self._write, part)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoRoom from error
            raise

    def _write(self, part: bytearray) -> None:
        """Append to the file; creates it first. Runs in a thread."""
        with self._lock:
            if self._discarded:
                return
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - discard closes it
                    dir=self._folder, prefix=MARK, buffering=0, delete=False
                )
            rest = memoryview(part)
            while rest:
                rest = rest[self._file.write(rest) :]


def room(folder: Path) -> int:
    """Return the bytes that are free on the disk of this folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def claim(folder: Path) -> int:
    """Create and lock the spool folder; return the file descriptor of the lock.

    Files that a crash has left are removed, unless another process holds the lock: they can be its
    own. The caller closes the descriptor at the end.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.glob(f"{MARK}*"):
            left.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle
