"""Counts of events per key and hour, in memory."""

from collections.abc import Callable
from datetime import datetime, timedelta

from models.runtime.clock_steps import is_ahead

KEPT = 50_000  # the oldest count is dropped

HOUR = timedelta(hours=1)


class Rates:
    """Counts per key in windows of an hour, which begin with the first event. Limit 0: no limit."""

    def __init__(self, most: int, now: Callable[[], datetime], kept: int = KEPT) -> None:
        self._most = most
        self._now = now
        self._kept = kept
        self._counts: dict[object, tuple[int, datetime]] = {}  # by age of their windows

    def full(self, key: object) -> bool:
        """True if the key has reached the limit in its current window."""
        if not self._most:
            return False
        now = self._now()
        many, until = self._counts.get(key, (0, now))
        return many >= self._most and is_ahead(until, now, HOUR)

    def add(self, key: object) -> None:
        """Count one event of the key."""
        if not self._most:
            return
        now = self._now()
        many, until = self._counts.get(key, (0, now))
        if not is_ahead(until, now, HOUR):
            self._counts.pop(key, None)
            many, until = 0, now + HOUR
            if len(self._counts) >= self._kept:
                del self._counts[next(iter(self._counts))]
        self._counts[key] = (many + 1, until)
