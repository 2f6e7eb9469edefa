"""Limits on how many users of a resource are active at once: in total, and for each key."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Seat:
    """A slot that is in use. To release it twice has no further effect."""

    crowd: "Crowd"
    who: Hashable
    taken: bool = True

    def move(self, who: Hashable, each: int) -> bool:
        """Count this slot for another key; return False if all slots of that key are in use."""
        if self.crowd.of(who) >= each:
            return False
        self.crowd.count(self.who, -1)
        self.who = who
        self.crowd.count(who, 1)
        return True

    def leave(self) -> None:
        """Release the slot."""
        if self.taken:
            self.taken = False
            self.crowd.here -= 1
            self.crowd.count(self.who, -1)


@dataclass(eq=False)
class Crowd:
    """Counts the slots in use. It keeps nothing about a key without slots."""

    most: int  # in total
    each: int
    here: int = 0
    _counts: dict[Hashable, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """True if all slots are in use."""
        return self.here >= self.most

    def enter(self, who: Hashable, each: int | None = None) -> Seat | None:
        """Return a new slot, or None if all slots, or all of this key, are in use."""
        count = self._counts.get(who, 0)
        if self.here >= self.most or count >= (self.each if each is None else each):
            return None
        self.here += 1
        self._counts[who] = count + 1
        return Seat(self, who)

    def of(self, who: Hashable) -> int:
        """Return the number of slots in use for a key."""
        return self._counts.get(who, 0)

    def count(self, who: Hashable, more: int) -> None:
        """Add a number, which can be negative, to the count of a key."""
        now = self._counts.get(who, 0) + more
        if now:
            self._counts[who] = now
        else:
            del self._counts[who]
