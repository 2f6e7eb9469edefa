"""A cache of values that were computed from bytes that never change."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

ROOM = 16 << 20  # bytes
LARGEST = ROOM // 16  # bytes; one entry must not push out all others


class Shelf:
    """Keeps the values that were used last, up to a number of bytes.

    Keys name the digests of the bytes and the function. Callers check first that the viewer can see
    the value. Values are shared and must not be changed.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.used = 0
        self._room = room
        self._things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Hashable) -> Any:
        """Return the cached value, or None."""
        found = self._things.get(key)
        if found is None:
            return None
        self._things.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, thing: Any, size: int) -> None:
        """Cache a value of about `size` bytes unless it is too large."""
        if size > min(LARGEST, self._room):
            return
        self.remove(key)
        self._things[key] = (thing, size)
        self.used += size
        while self.used > self._room:
            _, (_, gone) = self._things.popitem(last=False)
            self.used -= gone

    def remove(self, key: Hashable) -> None:
        """Remove a key, which can be absent."""
        _, size = self._things.pop(key, (None, 0))
        self.used -= size
