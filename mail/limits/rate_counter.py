"""How often something came lately, counted in memory."""

from collections.abc import Callable
from datetime import datetime, timedelta

from models.runtime.clock_steps import is_ahead

KEPT = 50_000  # counts at most; the oldest is forgotten then

HOUR = timedelta(hours=1)


class Rates:
    """Counts in windows of an hour: the first one of a key opens its window. 0: any number."""

    def __init__(self, most: int, now: Callable[[], datetime], kept: int = KEPT) -> None:
        self._most = most
        self._now = now
        self._kept = kept
        self._counts: dict[object, tuple[int, datetime]] = {}  # by age of their windows

    def full(self, key: object) -> bool:
        """Whether as many of this have come as may."""
        if not self._most:
            return False
        now = self._now()
        many, until = self._counts.get(key, (0, now))
        return many >= self._most and is_ahead(until, now, HOUR)

    def add(self, key: object) -> None:
        """Count one more."""
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
