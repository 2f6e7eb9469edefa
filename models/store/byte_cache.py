"""A cache of values that were computed from bytes that never change."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

CAPACITY = 16 << 20  # bytes
LARGEST_ENTRY = CAPACITY // 16  # bytes; one entry must not push out all others


class ByteCache:
    """Keeps the values that were used last, up to a number of bytes.

    Keys name the digests of the bytes and the function. Callers check first that the viewer can see
    the value. Values are shared and must not be changed.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.used_bytes = 0
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any:
        """Return the cached value, or None."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Cache a value of about `size` bytes unless it is too large."""
        if size > min(LARGEST_ENTRY, self._capacity):
            return
        self.remove(key)
        self._entries[key] = (value, size)
        self.used_bytes += size
        while self.used_bytes > self._capacity:
            _, (_, gone) = self._entries.popitem(last=False)
            self.used_bytes -= gone

    def remove(self, key: Hashable) -> None:
        """Remove a key, which can be absent."""
        _, size = self._entries.pop(key, (None, 0))
        self.used_bytes -= size
