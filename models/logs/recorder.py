"""Record log entries without waiting: a bounded queue, and a thread that writes to the log store.

Nothing here blocks or raises in the code that reports an entry. If the queue is full or the store
can't be written, entries are lost and counted.

Frequent entries are also built by the thread, many together. Between other work of the event loop,
the same code takes three times as long, since it and its data are no longer in the CPU caches.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from models.logs.entries import (
    LogComponent,
    LogLevel,
    NewLogEntry,
    StorableLogEntry,
    estimated_size,
    storable_entry,
)
from models.logs.levels import OFF, parse_levels
from models.logs.store import LogLimits, LogStore, LogStoreFull
from models.observability import metrics

log = logging.getLogger(__name__)

MAX_WAITING = 10_000  # entries
MAX_WAITING_SIZE = 4 << 20  # bytes of the waiting entries, estimated
MAX_BATCH = 2000  # entries of a transaction
MAX_BATCH_SIZE = 1 << 20  # bytes of the entries of a transaction, estimated
WRITE_DELAY = 0.5  # seconds in which entries are collected, as a batch costs as much as 50 entries
STOP_TIMEOUT = 5.0  # seconds for the last entries at the end of the process
FLUSH_TIMEOUT = 10.0  # seconds
DOMAIN_LIFETIME = 60.0  # seconds for which the domain of a user is remembered
MAX_REMEMBERED_USERS = 10_000
PROBLEM_INTERVAL = 60.0  # seconds between two reports of failures on stderr

LOST_ENTRIES = metrics.counter(
    "merganser_log_entries_lost", "Entries that are missing in the log store, by reason.", "reason"
)


@dataclass(frozen=True, slots=True)
class _Flush:
    """A mark in the queue: all entries before it are written or lost when it is done."""

    done: threading.Event
    syncs_disk: bool = False  # the entries also survive a power cut


@dataclass(slots=True)
class _QueuedEntries:
    """Entries in the queue, which may not be built yet."""

    entries: Iterable[NewLogEntry]
    count: int
    size: int  # bytes in memory, estimated


@dataclass(slots=True)
class _Batch:
    """Entries from the queue, the marks among them, and whether the thread ends after them."""

    queued: list[_QueuedEntries] = field(default_factory=list)
    flushes: list[_Flush] = field(default_factory=list)
    is_last: bool = False
    count: int = 0
    size: int = 0  # bytes of the entries, estimated


class LogRecorder:
    """Records the log entries of a process. Before `start` and without a store they are dropped."""

    def __init__(self, store: LogStore | None = None) -> None:
        self.store = store  # None: nothing is stored, and nothing can be read
        self.read_levels: Callable[[], str] = str  # the setting `logs.levels`
        self._read_limits: Callable[[], LogLimits] | None = None
        self._queue: SimpleQueue[_QueuedEntries | _Flush | None] = SimpleQueue()
        self._waiting_count = 0  # entries in the queue and in the batch
        self._waiting_size = 0  # bytes of these entries
        # reentrant, since a finalizer can log anywhere; nothing waits while it is held
        self._size_lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._may_write_now = threading.Event()  # a flush or the end waits
        self._domain_ids: OrderedDict[int, tuple[float, int | None]] = OrderedDict()
        self._last_problem_at = -PROBLEM_INTERVAL
        self.lost_count = 0  # entries that could not be written

    def start(self, read_levels: Callable[[], str], read_limits: Callable[[], LogLimits]) -> None:
        """Write the entries of this process to the store, in a thread, until `stop`."""
        self.read_levels, self._read_limits = read_levels, read_limits
        self._may_write_now.clear()
        self._thread = threading.Thread(target=self._write_until_stopped, name="log-writer")
        self._thread.daemon = True
        self._thread.start()

    def is_recorded(self, component: LogComponent, level: LogLevel) -> bool:
        """True if the settings keep entries of this component and level."""
        return level.rank >= self.lowest_ranks()[component]

    def lowest_ranks(self) -> Mapping[LogComponent, int]:
        """Return the lowest rank of the entries of each component that the settings keep."""
        return parse_levels(self.read_levels() if self._thread is not None else OFF)

    def enqueue_or_drop_entry(self, entry: NewLogEntry) -> None:
        """Queue an entry if the settings keep it. Never blocks, and loses it if the queue is full.

        The caller must not change the fields afterwards.
        """
        if self.is_recorded(entry.component, entry.level):
            self.record_unbuilt((entry,), 1, estimated_size(entry))

    def record_unbuilt(self, entries: Iterable[NewLogEntry], count: int, size: int) -> None:
        """Queue entries that the thread builds by iterating, which the settings must keep.

        `size` is their estimated number of bytes. Never blocks, and loses all of them if the queue
        is full. What `entries` refers to is kept until then, and the caller must not change it.
        """
        if self._waiting_count >= MAX_WAITING or self._waiting_size >= MAX_WAITING_SIZE:
            LOST_ENTRIES.add("queue full", amount=count)
            return
        self._add_waiting(count, size)
        self._queue.put(_QueuedEntries(entries, count, size))

    def _add_waiting(self, count: int, size: int) -> None:
        with self._size_lock:
            self._waiting_count += count
            self._waiting_size += size

    @property
    def waiting_count(self) -> int:
        """The number of entries that wait to be written."""
        return self._waiting_count

    @property
    def waiting_size(self) -> int:
        """The estimated bytes of the entries that wait to be written."""
        return self._waiting_size

    async def flush_within_timeout(self, *, syncs_disk: bool = False) -> bool:
        """Wait until the entries recorded so far are written or lost.

        With `syncs_disk` they also survive a power cut. Returns False after FLUSH_TIMEOUT.
        """
        if self._thread is None:
            return True
        flush = _Flush(threading.Event(), syncs_disk)
        self._may_write_now.set()  # before the mark is read, which clears it
        self._queue.put(flush)
        return await asyncio.to_thread(flush.done.wait, FLUSH_TIMEOUT)

    async def stop(self) -> None:
        """Write the waiting entries, end the thread and close the store."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._may_write_now.set()
            self._queue.put(None)
            await asyncio.to_thread(thread.join, STOP_TIMEOUT)
        store, self.store = self.store, None
        if store is not None:
            await store.close()

    def _write_until_stopped(self) -> None:
        store = self.store
        if store is None:
            return
        while True:
            batch = self._take_batch()
            if batch.queued:
                self._write_or_count_lost(store, batch)
                self._add_waiting(-batch.count, -batch.size)
            if any(flush.syncs_disk for flush in batch.flushes):
                self._sync_to_disk_or_log_failure(store)
            for flush in batch.flushes:
                flush.done.set()
            if batch.is_last:
                break
        store.close_writer()

    def _take_batch(self) -> _Batch:
        """Wait for entries and take a batch of them from the queue."""
        batch = _Batch()
        item = self._queue.get()  # without CPU time while there are none
        if isinstance(item, _QueuedEntries) and self._waiting_count < MAX_BATCH:
            self._may_write_now.wait(WRITE_DELAY)  # not `sleep`, which fails under libfaketime
        while item is not None:
            if isinstance(item, _QueuedEntries):
                batch.queued.append(item)
                batch.count += item.count
                batch.size += item.size
            else:
                batch.flushes.append(item)
                self._may_write_now.clear()
            is_full = batch.count >= MAX_BATCH or batch.size >= MAX_BATCH_SIZE
            if is_full or self._queue.empty():
                return batch
            item = self._queue.get()  # this thread is the only reader
        batch.is_last = True
        return batch

    def _write_or_count_lost(self, store: LogStore, batch: _Batch) -> None:
        """Write entries. A failure loses them; it is counted, and reported once a minute."""
        try:
            new_entries = [entry for queued in batch.queued for entry in _built_entries(queued)]
            self._set_domain_ids(store, new_entries)
            entries = [entry for new in new_entries if (entry := _storable_entry_or_none(new))]
            limits = self._read_limits() if self._read_limits else None
            if limits is not None and entries:
                store.write_entries_unless_full(entries, limits)
        except Exception as problem:  # noqa: BLE001 - outermost code of a thread: it must go on
            reason = "store full" if isinstance(problem, LogStoreFull) else "store failed"
            LOST_ENTRIES.add(reason, amount=batch.count)
            self.lost_count += batch.count
            if time.monotonic() - self._last_problem_at >= PROBLEM_INTERVAL:
                self._last_problem_at = time.monotonic()
                log.warning(
                    "Log entries are lost: the log store can't be written",
                    extra={"entries": batch.count, "problem": type(problem).__name__},
                )

    def _sync_to_disk_or_log_failure(self, store: LogStore) -> None:
        try:
            store.sync_to_disk()
        except OSError as problem:  # in a thread that must go on
            self.lost_count += 1
            log.warning("The log store can't be synced", extra={"problem": type(problem).__name__})

    def _set_domain_ids(self, store: LogStore, new_entries: Sequence[NewLogEntry]) -> None:
        """Set the domain of entries about a user, so that its administrators can read them."""
        entries = [
            entry for entry in new_entries if entry.user_id is not None and entry.domain_id is None
        ]
        if not entries:
            return
        now = time.monotonic()
        unknown = {
            entry.user_id
            for entry in entries
            if entry.user_id is not None
            and self._domain_ids.get(entry.user_id, (-DOMAIN_LIFETIME, None))[0]
            <= now - DOMAIN_LIFETIME
        }
        if unknown:
            found = store.load_domain_ids_of_users(unknown)
            for user_id in unknown:
                self._domain_ids[user_id] = now, found.get(user_id)
                self._domain_ids.move_to_end(user_id)
        for entry in entries:
            if entry.user_id is not None:
                entry.domain_id = self._domain_ids[entry.user_id][1]
        while len(self._domain_ids) > MAX_REMEMBERED_USERS:
            self._domain_ids.popitem(last=False)


def _built_entries(queued: _QueuedEntries) -> Sequence[NewLogEntry]:
    """Return the entries. None, and counted, if building one fails."""
    try:
        return list(queued.entries)
    except Exception:  # noqa: BLE001 - values of any type: they must not lose the whole batch
        LOST_ENTRIES.add("unstorable", amount=queued.count)
        return ()


def _storable_entry_or_none(entry: NewLogEntry) -> StorableLogEntry | None:
    """Return the entry as it is stored. None, and counted, if its fields can't be."""
    try:
        return storable_entry(entry)
    except Exception:  # noqa: BLE001 - values of any type: one must not lose the whole batch
        LOST_ENTRIES.add("unstorable")
        return None
