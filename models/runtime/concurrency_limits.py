"""How many may be here at once: in all, and of each."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Seat:
    """One who is here. Leaving twice is leaving once."""

    crowd: "Crowd"
    who: Hashable
    taken: bool = True

    def move(self, who: Hashable, each: int) -> bool:
        """Be counted as somebody else, who may have so many; False where those are all taken."""
        if self.crowd.of(who) >= each:
            return False
        self.crowd.count(self.who, -1)
        self.who = who
        self.crowd.count(who, 1)
        return True

    def leave(self) -> None:
        """Make room."""
        if self.taken:
            self.taken = False
            self.crowd.here -= 1
            self.crowd.count(self.who, -1)


@dataclass(eq=False)
class Crowd:
    """Those who are here; it remembers nobody who has left."""

    most: int  # in all
    each: int  # of one
    here: int = 0
    _counts: dict[Hashable, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether nobody more is let in."""
        return self.here >= self.most

    def enter(self, who: Hashable, each: int | None = None) -> Seat | None:
        """A seat; None where all are taken, or all of this one's."""
        count = self._counts.get(who, 0)
        if self.here >= self.most or count >= (self.each if each is None else each):
            return None
        self.here += 1
        self._counts[who] = count + 1
        return Seat(self, who)

    def of(self, who: Hashable) -> int:
        """How many of one are here."""
        return self._counts.get(who, 0)

    def count(self, who: Hashable, more: int) -> None:
        """Count so many more of one."""
        now = self._counts.get(who, 0) + more
        if now:
            self._counts[who] = now
        else:
            del self._counts[who]
