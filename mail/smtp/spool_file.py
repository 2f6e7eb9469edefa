"""A message on its way in: without its dots, counted, and on disk once it is large."""

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
LINE_MAX = 1 << 20  # bytes; neighbours that join lines are met, endless ones are not
MEMORY = 1 << 20  # bytes of a message that stay in memory
MARK = "incoming-"  # names of our files begin with it


class NoRoom(Exception):
    """The budget for bytes in flight is used up, or the disk is full."""


@dataclass(slots=True)
class Budget:
    """Bytes of all messages on their way in, in memory and on disk together."""

    limit: int
    used: int = 0

    def take(self, count: int) -> None:
        """Count these in, or raise NoRoom and count nothing."""
        if not self.fits(count):
            raise NoRoom
        self.used += count

    def give(self, count: int) -> None:
        """Count these out."""
        self.used -= count

    def fits(self, count: int) -> bool:
        """Whether that many more bytes are within the limit."""
        return self.used + count <= self.limit


class Body:
    """What DATA brings, in pieces cut anywhere (RFC 5321, sections 4.1.1.4 and 4.5.2).

    CRLF, dot, CRLF ends it and nothing else does: whoever takes a bare CR or LF for a line's
    end there can be made to see two messages in one.
    """

    def __init__(self) -> None:
        self.ended = False
        self.overlong = False  # a line of more than LINE_MAX bytes was seen
        self._held = END[:2]  # the CRLF of the command counts: a dot may come at once
        self._begun = False
        self._line = 0  # bytes of the line that has not ended yet

    def feed(self, piece: bytes) -> tuple[bytes, bytes]:
        """What this piece adds to the message, and what came behind the message's end.

        A piece is shorter than LINE_MAX, so that a line too long is in two of them.
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
        first = added.find(b"\n")
        self._line += len(added) if first < 0 else first + 1
        self.overlong = self.overlong or self._line > LINE_MAX
        if first >= 0:
            self._line = len(added) - 1 - added.rfind(b"\n")


def _begun(seen: bytes) -> int:
    """How many of the last bytes may be the beginning of the end."""
    return next((size for size in (4, 3, 2, 1) if seen.endswith(END[:size])), 0)


class Spool:
    """One message on its way in. Whoever has it discards it: `with` does."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.size = 0
        self._folder = folder
        self._budget = budget
        self._part = bytearray()  # not yet on disk
        self._file: IO[bytes] | None = None
        self._discarded = False
        self._lock = threading.Lock()  # a thread may still write when we are told to go

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
        """Keep these bytes too. NoRoom where that would exceed the budget or the disk."""
        self._budget.take(len(piece))
        self.size += len(piece)
        self._part += piece
        if len(self._part) > MEMORY:
            await self._spill()

    async def source(self) -> bytes | Path:
        """The whole message; the file it is in, where it is too large for memory."""
        if self._file is None:
            return bytes(self._part)
        await self._spill()
        return Path(self._file.name)

    def discard(self) -> None:
        """Forget the message; its file is gone and its bytes count no more."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                place = Path(self._file.name)
                place.unlink(missing_ok=True)
                for piece in place.parent.glob(f"{place.name}.*"):  # it was taken apart
                    piece.unlink(missing_ok=True)
                self._file = None
        self._part = bytearray()
        self._budget.give(self.size)
        self.size = 0

    async def _spill(self) -> None:
        part, self._part = self._part, bytearray()
        try:
            await to_thread(self._write, part)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise NoRoom from error
            raise

    def _write(self, part: bytearray) -> None:
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
    """Bytes that are free on the disk of this folder, for us."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def claim(folder: Path) -> int:
    """Make the folder and remove what a crash has left there. Returns a handle to close at the end.

    As long as another process holds a claim, nothing is removed: the files may be its own.
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
