"""Generated ids: 64-bit numbers that begin with the time of their creation."""

import secrets
import threading
import time
from array import array

RANDOM_BITS = 22
BATCH_SIZE = 256  # ids whose random bits are fetched at once: a system call costs more than an id
EPOCH_MILLISECONDS = 1_735_689_600_000  # 2025-01-01; 41 bits of milliseconds last until 2094


class IdGenerator:
    """Generates ids: 41 bits of milliseconds and 22 random bits, each higher than the one before.

    An id is known before its row is stored, rows are stored in the order of their creation, the id
    of a deleted row is never used again (the full-text index relies on it), and ids don't reveal
    the number of messages.
    """

    def __init__(self) -> None:
        self._last = 0
        self._random_parts: list[int] = []
        self._lock = threading.Lock()  # the writer's thread generates ids too

    def __call__(self) -> int:
        now = time.time_ns() // 1_000_000 - EPOCH_MILLISECONDS
        with self._lock:
            if not self._random_parts:
                words = array("I", secrets.token_bytes(4 * BATCH_SIZE))
                self._random_parts = [word >> (32 - RANDOM_BITS) for word in words]
            self._last = max(self._last + 1, now << RANDOM_BITS | self._random_parts.pop())
            return self._last
