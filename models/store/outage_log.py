"""One log line when a component fails and one when it works again, with counts between them."""

import logging
import threading
import time
from dataclasses import dataclass

from models.store.outages import StorageComponent, StorageUnavailable, StreamBusy

log = logging.getLogger(__name__)

LOCK_OUTAGE = "account locks"
# seconds without a failure after which an outage is over
QUIET_SECONDS = {
    StorageComponent.STORE: 2.0,
    StorageComponent.BLOBS: 2.0,
    StorageComponent.DISK: 30.0,
    LOCK_OUTAGE: 30.0,
}


@dataclass
class Outage:
    """An outage that has not ended."""

    began_at: float
    last_failure_at: float
    failures: int = 0
    suppressed_records: int = 0  # log records about it that were not written


class OutageLog:
    """The outages of this process, by the name of the component."""

    def __init__(self) -> None:
        self._open: dict[str, Outage] = {}
        self._lock = threading.Lock()  # the threads that read SQLite log too

    @property
    def is_quiet(self) -> bool:
        """True if there is no outage, which is the usual case and must cost nothing."""
        return not self._open

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
        """Log the end of an outage if nothing has failed for a moment."""
        others = (LOCK_OUTAGE, StorageComponent.DISK) if component is StorageComponent.STORE else ()
        names = (component, *others)
        for name in names:
            with self._lock:
                outage = self._open.get(name)
                if (
                    outage is None
                    or time.monotonic() - outage.last_failure_at < QUIET_SECONDS[name]
                ):
                    continue
                del self._open[name]
            facts = {
                "component": name,
                "seconds": round(outage.last_failure_at - outage.began_at, 1),
                "failures": outage.failures,
                "records": outage.suppressed_records,
            }
            log.warning("Component available again", extra=facts)


def outage_name(failure: StorageUnavailable) -> str:
    """Return the name under which failures of one kind are one outage."""
    return LOCK_OUTAGE if isinstance(failure, StreamBusy) else str(failure.component)


OUTAGES = OutageLog()
