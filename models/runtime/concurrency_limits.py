"""Limits on how many users of a resource are active at once: in total, and for each key."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class ConcurrencySlot:
    """A slot that is in use. To release it twice has no further effect."""

    limiter: "ConcurrencyLimiter"
    key: Hashable
    is_in_use: bool = True

    def try_move_to_key(self, key: Hashable, limit_per_key: int) -> bool:
        """Count this slot for another key; return False if all slots of that key are in use."""
        if self.limiter.count_of_key(key) >= limit_per_key:
            return False
        self.limiter.add_to_key(self.key, -1)
        self.key = key
        self.limiter.add_to_key(key, 1)
        return True

    def release(self) -> None:
        """Release the slot."""
        if self.is_in_use:
            self.is_in_use = False
            self.limiter.in_use_count -= 1
            self.limiter.add_to_key(self.key, -1)


@dataclass(eq=False)
class ConcurrencyLimiter:
    """Counts the slots in use. It keeps nothing about a key without slots."""

    limit: int  # in total
    limit_per_key: int
    in_use_count: int = 0
    _counts: dict[Hashable, int] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """True if all slots are in use."""
        return self.in_use_count >= self.limit

    def acquire(self, key: Hashable, limit_per_key: int | None = None) -> ConcurrencySlot | None:
        """Return a new slot, or None if all slots, or all of this key, are in use."""
        count = self._counts.get(key, 0)
        if self.in_use_count >= self.limit or count >= (
            self.limit_per_key if limit_per_key is None else limit_per_key
        ):
            return None
        self.in_use_count += 1
        self._counts[key] = count + 1
        return ConcurrencySlot(self, key)

    def count_of_key(self, key: Hashable) -> int:
        """Return the number of slots in use for a key."""
        return self._counts.get(key, 0)

    def add_to_key(self, key: Hashable, difference: int) -> None:
        """Add a number, which can be negative, to the count of a key."""
        now = self._counts.get(key, 0) + difference
        if now:
            self._counts[key] = now
        else:
            del self._counts[key]
