"""What was worked out of bytes that never change, kept while there is room."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

ROOM = 16 << 20  # bytes
LARGEST = ROOM // 16  # one thing shall not push out all others


class Shelf:
    """The things that were used last, by what they were made of: digests, and how.

    Whoever looks here has seen before that the viewer may have it. Things are shared: nobody
    changes them.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.used = 0
        self._room = room
        self._things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: Hashable) -> Any:
        """What was put there, or None."""
        found = self._things.get(key)
        if found is None:
            return None
        self._things.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, thing: Any, size: int) -> None:
        """Keep a thing of about so many bytes, if it is not too large."""
        if size > min(LARGEST, self._room):
            return
        self.remove(key)
        self._things[key] = (thing, size)
        self.used += size
        while self.used > self._room:
            _, (_, gone) = self._things.popitem(last=False)
            self.used -= gone

    def remove(self, key: Hashable) -> None:
        """Forget a thing; one that is not there is no error."""
        _, size = self._things.pop(key, (None, 0))
        self.used -= size
