"""How fast mail goes to one place: so many messages in a minute, and not at all to who is down."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from mail.queue.jobs import Result

FIRST = 5.0  # seconds for which a place that does not answer is left alone
LONGEST = 300.0  # the most of it: it doubles with each time
WAITED = 2.0  # seconds that are waited for a turn; more is put off
PLACES = 10_000  # that are remembered


@dataclass
class Down:
    """A place that does not answer."""

    until: float
    wait: float
    result: Result  # what came of the last attempt


@dataclass
class Pacing:
    """What is known of places. `clock` is one that only runs forwards."""

    clock: Callable[[], float]
    down: dict[str, Down] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)  # from when on the next one may go
    promised: dict[str, float] = field(default_factory=dict)  # up to when turns were given away

    def dead(self, place: str) -> Result | None:
        """Why nothing is sent there now, and for how long, where it was down a moment ago."""
        known = self.down.get(place)
        left = known.until - self.clock() if known else 0.0
        if known is None or left <= 0:
            return None
        return replace(known.result, alone=timedelta(seconds=left))

    def failed(self, place: str, result: Result) -> None:
        """Nobody answers there."""
        known = self.down.pop(place, None)
        wait = min(known.wait * 2, LONGEST) if known else FIRST
        self.down[place] = Down(self.clock() + wait, wait, result)
        if len(self.down) > PLACES:
            del self.down[next(iter(self.down))]

    def answered(self, place: str) -> None:
        """It is there again."""
        self.down.pop(place, None)

    def turn(self, place: str, per_minute: int) -> float:
        """Seconds to wait for a turn, which is taken then; from `WAITED` on it is to be put off."""
        if not per_minute:
            return 0.0
        now, gap = self.clock(), 60.0 / per_minute
        at = max(self.free.get(place, now), now)
        if at - now < WAITED:
            self._set(self.free, place, at + gap)
            return at - now
        last = max(self.promised.get(place, at), at)
        self._set(self.promised, place, last + gap)
        return last - now

    def _set(self, where: dict[str, float], place: str, at: float) -> None:
        if len(where) > PLACES:
            now = self.clock()
            for each in [name for name, until in where.items() if until < now]:
                del where[each]
        where[place] = at
