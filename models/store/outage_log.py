"""One log line when a component fails and one when it works again, with counts between them."""

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.store.outages import DiskFull, StorageComponent, StorageUnavailable, StreamBusy

log = logging.getLogger(__name__)

LOCK_OUTAGE = "account locks"
# seconds without a failure after which an outage is over
QUIET_SECONDS = {
    StorageComponent.STORE: 2.0,
    StorageComponent.BLOBS: 2.0,
    StorageComponent.DISK: 30.0,
    LOCK_OUTAGE: 30.0,
}
# Of a full disk: reads, and small writes into free pages, succeed all the time.
QUIET_SECONDS_OF_FULL_DISK = 10.0
QUIET_SECONDS_OF_UNKNOWN_DISK = 60.0  # of another machine, whose free bytes are not known
MIN_ROOM = 4 << 20  # bytes that must have become free since the last failure


@dataclass
class Outage:
    """An outage that has not ended."""

    began_at: float
    last_failure_at: float
    failures: int = 0
    suppressed_records: int = 0  # log records about it that were not written
    is_disk_full: bool = False  # the last failure was one of a full disk
    free_bytes_at_failure: int | None = None  # of the full disk; None if they are unknown


class OutageLog:
    """The outages of this process, by the name of the component."""

    def __init__(self) -> None:
        self._open: dict[str, Outage] = {}
        self._lock = threading.Lock()  # the threads that read SQLite log too
        self._folders: Mapping[str, Path] = {}  # on the disk of a component, if it is a local one

    @property
    def is_quiet(self) -> bool:
        """True if there is no outage, which is the usual case and must cost nothing."""
        return not self._open

    def use_folders(self, folders: Mapping[str, Path]) -> None:
        """Set a folder on the disk of each component whose disk is one of this machine.

        An outage by a full disk ends when that disk has room again.
        """
        self._folders = folders

    def _free_bytes_or_none(self, name: str) -> int | None:
        try:
            return shutil.disk_usage(self._folders[name]).free
        except (KeyError, OSError):
            return None

    def count_failure_and_log_first(self, failure: StorageUnavailable) -> None:
        """Count a failed call. The first of an outage is logged."""
        name, now = outage_name(failure), time.monotonic()
        with self._lock:
            outage = self._open.get(name)
            is_first_failure = outage is None
            if outage is None:
                outage = self._open[name] = Outage(now, now)
            outage.last_failure_at = now
            outage.failures += 1
            outage.is_disk_full = isinstance(failure, DiskFull)
            if outage.is_disk_full:
                outage.free_bytes_at_failure = self._free_bytes_or_none(name)
        if is_first_failure:
            cause = failure.__cause__ or failure
            reason = next(iter(str(getattr(cause, "orig", cause)).splitlines()), "")
            facts = {"component": name, "problem": type(cause).__name__, "reason": reason[:200]}
            log.warning("Component unavailable", extra=facts)

    def note_suppressed_record(self, failure: StorageUnavailable) -> None:
        """Count a log record that is not written, since an outage caused it."""
        with self._lock:
            if outage := self._open.get(outage_name(failure)):
                outage.suppressed_records += 1
                return
        self.count_failure_and_log_first(failure)

    def end_outages_if_quiet(self, component: StorageComponent = StorageComponent.STORE) -> None:
        """Log the end of an outage if nothing has failed for a moment.

        An outage by a full disk ends only when the disk has room.
        """
        others = (LOCK_OUTAGE, StorageComponent.DISK) if component is StorageComponent.STORE else ()
        names = (component, *others)
        for name in names:
            with self._lock:
                outage = self._open.get(name)
                if outage is None or not self._has_ended(name, outage):
                    continue
                del self._open[name]
            facts = {
                "component": name,
                "seconds": round(outage.last_failure_at - outage.began_at, 1),
                "failures": outage.failures,
                "records": outage.suppressed_records,
            }
            log.warning("Component available again", extra=facts)

    def _has_ended(self, name: str, outage: Outage) -> bool:
        """True if an outage has ended, after a call of the component has succeeded."""
        quiet_seconds = time.monotonic() - outage.last_failure_at
        if not outage.is_disk_full:
            return quiet_seconds >= QUIET_SECONDS[name]
        if outage.free_bytes_at_failure is None:
            return quiet_seconds >= QUIET_SECONDS_OF_UNKNOWN_DISK
        if quiet_seconds < QUIET_SECONDS_OF_FULL_DISK:
            return False
        free_bytes = self._free_bytes_or_none(name)
        return free_bytes is None or free_bytes - outage.free_bytes_at_failure >= MIN_ROOM


def outage_name(failure: StorageUnavailable) -> str:
    """Return the name under which failures of one kind are one outage."""
    return LOCK_OUTAGE if isinstance(failure, StreamBusy) else str(failure.component)


OUTAGES = OutageLog()
