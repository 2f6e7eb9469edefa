"""The registration of this process, and the heartbeats of the others."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HEARTBEAT_SECONDS = 5.0  # seconds between two heartbeats
MAX_REQUESTS_AT_ONCE = 4  # of one process to the others
DEAD_AFTER_SECONDS = 15.0  # seconds without a heartbeat after which a process counts as dead
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN_BOOT_ID = "unknown"  # boot identity outside Linux


def boot_id() -> str:
    """Return the identity of this boot of the machine."""
    try:
        return BOOT_ID_PATH.read_text().strip()
    except OSError:
        return UNKNOWN_BOOT_ID


def milliseconds_since_boot() -> int:
    """Return the milliseconds since the boot. No change of the time of day affects them."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def clock_ahead_of_boot(now: datetime) -> int:
    """Return the milliseconds by which the time of day is ahead of the time since the boot."""
    return int(now.timestamp() * 1000) - milliseconds_since_boot()


class ObservedClock:
    """The clock of a process. It remembers how far it was ahead of the time since the boot.

    A clock may be set forward and back between two heartbeats. So each reading counts.
    """

    __slots__ = ("_highest", "read")

    def __init__(self, read_time: Callable[[], datetime]) -> None:
        self.read = read_time
        self._highest: int | None = None

    def __call__(self) -> datetime:
        now = self.read()
        ahead = clock_ahead_of_boot(now)
        if self._highest is None or ahead > self._highest:
            self._highest = ahead
        return now

    def take_highest_reading_ahead_of_boot(self) -> int:
        """Return the highest `clock_ahead_of_boot` of a reading since the last call."""
        now = clock_ahead_of_boot(self.read())
        highest = now if self._highest is None else max(self._highest, now)
        self._highest = None
        return highest


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The heartbeat of a process as another process reads it."""

    process_id: int
    beat_count: int
    boot_id: str
    beat_at_ms: int  # milliseconds of CLOCK_BOOTTIME of its machine


@dataclass
class HeartbeatObserver:
    """Finds the processes without a heartbeat, by clocks that no operator can set.

    The observer measures with its own monotonic clock how long a counter has not changed. A check
    counts for one interval at most, so a pause of the observer or of the database ends no process.
    On one machine the age of a heartbeat by CLOCK_BOOTTIME shows the same without a wait.
    """

    interval_seconds: float = HEARTBEAT_SECONDS
    dead_after_seconds: float = DEAD_AFTER_SECONDS
    _unchanged: dict[int, tuple[int, float]] = field(default_factory=dict)  # counter, and seconds
    _checked_at: float | None = None

    def note_heartbeats_and_find_dead(
        self, heartbeats: Sequence[Heartbeat], *, is_one_machine: bool
    ) -> list[Heartbeat]:
        """Note these heartbeats, and return those of dead processes.

        With `is_one_machine`, a heartbeat of another boot, or too old by CLOCK_BOOTTIME, counts as
        dead even at the first call. Otherwise its counter must not have changed for
        `dead_after_seconds`, measured over several calls.
        """
        now, before = time.monotonic(), self._checked_at
        passed = 0.0 if before is None else min(now - before, self.interval_seconds)
        self._checked_at = now
        last_unchanged, self._unchanged = self._unchanged, {}
        for heartbeat in heartbeats:
            beats, seconds = last_unchanged.get(heartbeat.process_id, (None, 0.0))
            unchanged = seconds + passed if beats == heartbeat.beat_count else 0.0
            self._unchanged[heartbeat.process_id] = (heartbeat.beat_count, unchanged)
        if is_one_machine:
            return [
                heartbeat
                for heartbeat in heartbeats
                if self._is_from_other_boot_or_old(heartbeat, is_first_check=before is None)
            ]
        return [
            heartbeat
            for heartbeat in heartbeats
            if self._unchanged[heartbeat.process_id][1] >= self.dead_after_seconds
        ]

    def _is_from_other_boot_or_old(self, heartbeat: Heartbeat, *, is_first_check: bool) -> bool:
        """True if a heartbeat is from another boot, or too old by CLOCK_BOOTTIME."""
        if heartbeat.boot_id != boot_id():
            return True
        age = (milliseconds_since_boot() - heartbeat.beat_at_ms) / 1000
        _, unchanged = self._unchanged[heartbeat.process_id]
        return age >= self.dead_after_seconds and (
            is_first_check or unchanged > self.interval_seconds
        )


@dataclass(frozen=True, slots=True)
class AbandonedLease:
    """The lease of work that failed in this process. A later heartbeat ends it."""

    table: Any
    conditions: Sequence[Any]
    due_at: float  # seconds of the monotonic clock
    values: Mapping[str, Any]  # other columns that change with it


class LeasedRow(NamedTuple):
    """A row that the database leases to this process."""

    table_index: int  # in `leases.LEASED_TABLES`
    work_key: int
    lease_number: int


@dataclass(eq=False)
class ProcessRegistration:
    """The registration of this process. `id` is None while the process is not registered.

    `restore_leases` has functions that take back the leases of work that continues after the
    process was taken for dead. They run in the transaction that registers the process again.
    `sending_entry_ids` has functions that return the ids of the queue entries that this process
    sends; `work_keys` has the keys of all other work that needs a lease. All other leases of this
    process are ended: see `leases.free_own_leases_found_stale_twice`.
    """

    server_id: str = field(default_factory=lambda: secrets.token_hex(8))
    name: str = "process"
    exclusive_purpose: str | None = (
        None  # the work for which a command needs the database for itself
    )
    answers_requests: bool = False  # of other processes: see resolvers/cluster/process_requests.py
    own_request_ids: set[int] = field(default_factory=set)  # requests to other processes
    request_slots: asyncio.Semaphore = field(  # for requests to other processes at once
        default_factory=partial(asyncio.Semaphore, MAX_REQUESTS_AT_ONCE)
    )
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    dead_after_seconds: float = DEAD_AFTER_SECONDS
    id: int | None = None
    open_blocks: int = 0  # `leases.keep_process_registered` blocks that are open
    restore_leases: list[Callable[[Any], None]] = field(default_factory=list)
    sending_entry_ids: list[Callable[[], Iterable[int]]] = field(default_factory=list)
    work_keys: Counter[int] = field(default_factory=Counter)  # several rows may share a lease
    # rows that the last check found without work
    suspected_rows: frozenset[LeasedRow] = frozenset()
    on_reserved: Callable[[], None] | None = None  # called when the process must not go on
    abandoned_leases: list[AbandonedLease] = field(default_factory=list)
    known_process_ids: frozenset[int] = frozenset()  # that the last check found
    stored_clock_ahead: int | None = None  # milliseconds, of the last heartbeat
    clock_ahead_before_step: int | None = None  # milliseconds; None if no waits are to be shortened
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    heartbeat_task: "asyncio.Task[None] | None" = field(default=None, repr=False)
    observer: HeartbeatObserver = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.observer = HeartbeatObserver(self.heartbeat_seconds, self.dead_after_seconds)
