"""A cache of values that were computed from bytes that never change."""

import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

CAPACITY = 16 << 20  # bytes
LARGEST_ENTRY = CAPACITY // 16  # bytes; one entry must not push out all others


@dataclass(slots=True)
class CachedBytesValue:
    """A value of the cache."""

    value: Any
    size: int  # bytes, estimated
    used_at: float  # seconds since 1970


class ByteCache:
    """Keeps the values that were used last, up to a number of bytes.

    Keys name the digests of the bytes and the function. Callers check first that the viewer can see
    the value. Values are shared and must not be changed.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.used_bytes = 0
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, CachedBytesValue] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any:
        """Return the cached value, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        entry.used_at = time.time()
        return entry.value

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Cache a value of about `size` bytes unless it is too large."""
        if size > min(LARGEST_ENTRY, self._capacity):
            return
        self.remove(key)
        self._entries[key] = CachedBytesValue(value, size, time.time())
        self.used_bytes += size
        while self.used_bytes > self._capacity:
            _, removed_entry = self._entries.popitem(last=False)
            self.used_bytes -= removed_entry.size

    def remove(self, key: Hashable) -> None:
        """Remove a key, which can be absent."""
        if (entry := self._entries.pop(key, None)) is not None:
            self.used_bytes -= entry.size

    def list_entries(self) -> list[tuple[Hashable, CachedBytesValue]]:
        """Return the keys with their values, the least recently used first."""
        return list(self._entries.items())
