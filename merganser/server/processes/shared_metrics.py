"""Memory that the processes of a server share: who is up, and what each has counted."""

import asyncio
import logging
import mmap
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from graph.http.metrics import counted
from models.observability.metrics import Across, Family, Kind, Point
from models.observability.metrics_merge import WORKER, carried, merged, packed, unpacked

log = logging.getLogger(__name__)

ROOM = 4 << 20  # bytes of what one process counts; memory is taken where something is written
EVERY = 1.0  # seconds between two notes
FRESH = 5.0  # seconds; whose last note is older is not up
HEAD = struct.Struct("<dII")  # when, length, CRC
SIDE = HEAD.size + ROOM
TRIES = 3  # a side is written anew after two notes: who reads meanwhile reads again
BLANK = 2


class Board:
    """Which processes are up: memory that all of them share."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._marks = mmap.mmap(-1, size)

    def mark(self, index: int, *, up: bool) -> None:
        """Note that a process is up, or is not."""
        self._marks[index] = int(up)

    def is_up(self, index: int) -> bool:
        """Whether that process is up."""
        return bool(self._marks[index])

    def up_count(self, processes: int) -> int:
        """The number of the first `processes` processes that are up."""
        return sum(self._marks[:processes])

    @property
    def size(self) -> int:
        """The number of processes, whether they are up or not."""
        return self._size

    @property
    def all_up(self) -> bool:
        """Whether none is missing."""
        return all(self._marks[: self._size])


class Slates:
    """A slate for each process, with two sides: one is read while the other one is written."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, size * (1 + 2 * SIDE))
        self._memory[:size] = bytes([BLANK]) * size  # which side is to be read

    def write(self, index: int, text: bytes) -> None:
        """Put this in the place of what was there."""
        if len(text) > ROOM:
            raise ValueError("more than a slate holds")
        side = int(self._memory[index] == 0)
        at = self._place(index, side)
        HEAD.pack_into(self._memory, at, time.monotonic(), len(text), zlib.crc32(text))
        self._memory[at + HEAD.size : at + HEAD.size + len(text)] = text
        self._memory[index] = side

    def read(self, index: int) -> tuple[float, bytes] | None:
        """The seconds since it was written, and what; None where nothing whole is there."""
        for _ in range(TRIES):
            side = self._memory[index]
            if side == BLANK:
                break
            at = self._place(index, side)
            when, length, crc = HEAD.unpack_from(self._memory, at)
            text = self._memory[at + HEAD.size : at + HEAD.size + min(length, ROOM)]
            if zlib.crc32(text) == crc:
                return time.monotonic() - when, text
        return None

    def _place(self, index: int, side: int) -> int:
        return self._size + (2 * index + side) * SIDE


@dataclass
class Ship:
    """A process of a fleet: tells the others what it counts, and all of what all have counted.

    It goes on from what the one before in its place had counted, so that nothing is counted down.
    """

    slates: Slates
    board: Board
    names: Sequence[str]
    index: int
    _before: list[Family] = field(init=False)

    def __post_init__(self) -> None:
        left = self.slates.read(self.index)
        self._before = unpacked(left[1]) if left else []

    @property
    def name(self) -> str:
        """What the worker is called."""
        return self.names[self.index]

    async def run(self) -> None:
        """Note now and then what was counted, and once more at the end."""
        try:
            while True:
                self.note()
                await asyncio.sleep(EVERY)
        finally:
            self.note()

    def note(self) -> None:
        """Let the others see what this process has counted by now."""
        try:
            self.slates.write(self.index, packed(carried(self._before, counted())))
        except Exception:  # whoever answers requests shall not end by it: it shows as not up
            log.exception("metrics could not be noted")

    def families(self) -> list[Family]:
        """What all have counted, and whose numbers are of now."""
        found = [self._of(index, name) for index, name in enumerate(self.names)]
        points = [Point((name,), int(up)) for name, up, _ in found]
        words = "1 for each process that is up and tells its numbers."
        up = Family("merganser_worker_up", Kind.GAUGE, words, (WORKER,), points, across=Across.SAME)
        return [up, *merged(found)]

    def _of(self, index: int, name: str) -> tuple[str, bool, list[Family]]:
        told = self.slates.read(index)
        if told is None:
            return name, False, []
        age, text = told
        return name, age < FRESH and self.board.is_up(index), unpacked(text)
