"""Memory that the processes of a server share: which are up, and the metrics of each."""

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

ROOM = 4 << 20  # bytes per process; the kernel allocates only written pages
EVERY = 1.0  # seconds
FRESH = 5.0  # seconds; a process whose metrics are older counts as down
HEAD = struct.Struct("<dII")  # time, length, CRC
SIDE = HEAD.size + ROOM
TRIES = 3  # a copy is overwritten after two writes, so a slow reader must read again
BLANK = 2


class Board:
    """Which processes are up, in memory that all of them share."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._marks = mmap.mmap(-1, size)

    def mark(self, index: int, *, up: bool) -> None:
        """Store whether a process is up."""
        self._marks[index] = int(up)

    def is_up(self, index: int) -> bool:
        """True if the process is up."""
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
        """True if all processes are up."""
        return all(self._marks[: self._size])


class Slates:
    """The serialized metrics of each process, in memory that all processes share.

    There are two copies per process: one can be read while the other one is written.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, size * (1 + 2 * SIDE))
        self._memory[:size] = bytes([BLANK]) * size  # the copy to read

    def write(self, index: int, text: bytes) -> None:
        """Replace the metrics of a process. Raises ValueError if they are too large."""
        if len(text) > ROOM:
            raise ValueError("more than a slate holds")
        side = int(self._memory[index] == 0)
        at = self._place(index, side)
        HEAD.pack_into(self._memory, at, time.monotonic(), len(text), zlib.crc32(text))
        self._memory[at + HEAD.size : at + HEAD.size + len(text)] = text
        self._memory[index] = side

    def read(self, index: int) -> tuple[float, bytes] | None:
        """Return the age in seconds and the metrics of a process; None if none are valid."""
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
    """Shares the metrics of this process with the others, and merges those of all processes.

    Counters begin at the values of the former process with this index, so they never decrease.
    """

    slates: Slates
    board: Board
    names: Sequence[str]
    index: int
    _before: list[Family] = field(init=False)

    def __post_init__(self) -> None:
        earlier_record = self.slates.read(self.index)
        self._before = unpacked(earlier_record[1]) if earlier_record else []

    @property
    def name(self) -> str:
        """The name of this process."""
        return self.names[self.index]

    async def run(self) -> None:
        """Write the metrics of this process every second, and once more at the end."""
        try:
            while True:
                self.note()
                await asyncio.sleep(EVERY)
        finally:
            self.note()

    def note(self) -> None:
        """Write the current metrics of this process for the others. Logs errors."""
        try:
            self.slates.write(self.index, packed(carried(self._before, counted())))
        except (
            Exception
        ):  # must not stop a process that answers requests; the process shows as down
            log.exception("metrics could not be noted")

    def families(self) -> list[Family]:
        """The merged metrics of all processes, and a gauge that shows which are up."""
        process_families = [self._of(index, name) for index, name in enumerate(self.names)]
        points = [Point((name,), int(up)) for name, up, _ in process_families]
        help_text = "1 for each process that is up and tells its numbers."
        up = Family(
            "merganser_worker_up", Kind.GAUGE, help_text, (WORKER,), points, across=Across.SAME
        )
        return [up, *merged(process_families)]

    def _of(self, index: int, name: str) -> tuple[str, bool, list[Family]]:
        record = self.slates.read(index)
        if record is None:
            return name, False, []
        age, text = record
        return name, age < FRESH and self.board.is_up(index), unpacked(text)
