"""What a process knows of its own registration, and of the other processes' heartbeats."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

BEAT = 5.0  # seconds between two heartbeats
DEAD_AFTER = 15.0  # seconds without a heartbeat after which a process counts as dead
BOOT = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = "unknown"  # boot identity outside Linux


def boot_id() -> str:
    """The identity of this machine's boot; another one after each boot."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return UNKNOWN


def boot_time() -> int:
    """Milliseconds since the boot. No change of the time of day moves this clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def clock_ahead(now: datetime) -> int:
    """Milliseconds by which the time of day is ahead of the time since the boot."""
    return int(now.timestamp() * 1000) - boot_time()


class ObservedClock:
    """The clock of a process; it remembers how far ahead it was.

    A clock may be set forward and back between two heartbeats. So each reading counts.
    """

    __slots__ = ("_highest", "read")

    def __init__(self, read: Callable[[], datetime]) -> None:
        self.read = read
        self._highest: int | None = None

    def __call__(self) -> datetime:
        now = self.read()
        ahead = clock_ahead(now)
        if self._highest is None or ahead > self._highest:
            self._highest = ahead
        return now

    def take_highest(self) -> int:
        """Return `clock_ahead` of the reading that was furthest ahead since the last call."""
        now = clock_ahead(self.read())
        highest = now if self._highest is None else max(self._highest, now)
        self._highest = None
        return highest


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The heartbeat of a process as another process reads it."""

    process_id: int
    beats: int
    boot: str
    beat_at: int  # milliseconds of CLOCK_BOOTTIME of its machine


@dataclass
class HeartbeatObserver:
    """Finds the processes whose heartbeat has stopped, by clocks that nobody can set.

    The observer measures with its own monotonic clock how long a counter has not changed. A look
    counts for one interval at most, so a pause of the observer or of the store kills nobody. On
    one machine the age of a heartbeat by CLOCK_BOOTTIME tells the same without waiting.
    """

    beat: float = BEAT
    dead_after: float = DEAD_AFTER
    _unchanged: dict[int, tuple[int, float]] = field(default_factory=dict)  # counter, and seconds
    _looked_at: float | None = None

    def find_dead(self, heartbeats: Sequence[Heartbeat], *, one_machine: bool) -> list[Heartbeat]:
        """Return the processes that count as dead."""
        now, before = time.monotonic(), self._looked_at
        passed = 0.0 if before is None else min(now - before, self.beat)
        self._looked_at = now
        known, self._unchanged = self._unchanged, {}
        for each in heartbeats:
            beats, seconds = known.get(each.process_id, (None, 0.0))
            same = seconds + passed if beats == each.beats else 0.0
            self._unchanged[each.process_id] = (each.beats, same)
        if one_machine:
            return [each for each in heartbeats if self._is_old(each, first=before is None)]
        return [
            each for each in heartbeats if self._unchanged[each.process_id][1] >= self.dead_after
        ]

    def _is_old(self, heartbeat: Heartbeat, *, first: bool) -> bool:
        if heartbeat.boot != boot_id():
            return True
        age = (boot_time() - heartbeat.beat_at) / 1000
        _, unchanged = self._unchanged[heartbeat.process_id]
        return age >= self.dead_after and (first or unchanged > self.beat)


@dataclass(frozen=True, slots=True)
class AbandonedLease:
    """A lease whose work failed in this process; it is given back later, by a heartbeat."""

    table: Any
    where: Sequence[Any]
    due: float  # of the monotonic clock


class HeldRow(NamedTuple):
    """A row that the store leases to this process."""

    place: int  # of its table in `leases.LEASED`
    work: int
    lease: int


@dataclass(eq=False)
class Registration:
    """The registration of this process. `id` is None while the process is not registered.

    `restore` holds what takes back the leases of work that is still under way, after the process
    was taken for dead: it runs in the unit of work that registers the process anew. `under_way`
    lists the recipients that this process sends to; `work` has the keys of all other work that
    needs a lease. What the store leases beside them is given back: see `leases.free_stale`.
    """

    server: str = field(default_factory=lambda: secrets.token_hex(8))
    name: str = "process"
    exclusive: str | None = None
    beat: float = BEAT
    dead_after: float = DEAD_AFTER
    id: int | None = None
    users: int = 0  # `leases.registered` blocks that are open
    restore: list[Callable[[Any], None]] = field(default_factory=list)
    under_way: list[Callable[[], Iterable[int]]] = field(default_factory=list)
    work: Counter[int] = field(default_factory=Counter)  # several rows may share a lease
    suspected: frozenset[HeldRow] = frozenset()  # what the last look has found without work
    on_reserved: Callable[[], None] | None = None  # called when the process must not go on
    abandoned: list[AbandonedLease] = field(default_factory=list)
    known: frozenset[int] = frozenset()  # processes that the last look has found
    noted_ahead: int | None = None  # `clock_ahead` that the last heartbeat stored
    was_ahead: int | None = None  # `clock_ahead` before a step that waits are still to follow
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)
    observer: HeartbeatObserver = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.observer = HeartbeatObserver(self.beat, self.dead_after)
