"""Counts of events per key and hour, in memory."""

from collections.abc import Callable
from datetime import datetime, timedelta

from models.runtime.clock_steps import is_plausible_wait_running

MAX_KEYS = 50_000  # the oldest count is dropped

HOUR = timedelta(hours=1)


class HourlyCounter:
    """Counts per key in windows of an hour, which begin with the first event. Limit 0: no limit."""

    def __init__(self, limit: int, clock: Callable[[], datetime], max_keys: int = MAX_KEYS) -> None:
        self._most = limit
        self._now = clock
        self._kept = max_keys
        self._counts: dict[object, tuple[int, datetime]] = {}  # by age of their windows

    def is_limit_reached(self, key: object) -> bool:
        """True if the key has reached the limit in its current window."""
        if not self._most:
            return False
        now = self._now()
        event_count, ends_at = self._counts.get(key, (0, now))
        return event_count >= self._most and is_plausible_wait_running(ends_at, now, HOUR)

    def count_event(self, key: object) -> None:
        """Count one event of the key."""
        if not self._most:
            return
        now = self._now()
        event_count, ends_at = self._counts.get(key, (0, now))
        if not is_plausible_wait_running(ends_at, now, HOUR):
            self._counts.pop(key, None)
            event_count, ends_at = 0, now + HOUR
            if len(self._counts) >= self._kept:
                del self._counts[next(iter(self._counts))]
        self._counts[key] = (event_count + 1, ends_at)
