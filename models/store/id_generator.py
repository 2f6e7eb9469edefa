"""Keys: 64-bit numbers that tell when, roughly, and nothing else."""

import secrets
import threading
import time
from array import array

CHANCE = 22  # bits
AHEAD = 256  # keys for which chance is fetched at once: a call of the system costs more than a key
EPOCH = 1_735_689_600_000  # 2025 began, in milliseconds; 41 bits of them last until 2094


class Keys:
    """Makes keys: 41 bits of milliseconds, 22 of chance, each above the one before.

    A key is there before its row, rows lie in the order they came, a deleted row's key
    never returns (the full-text index counts on it), and nobody can count our mail by them.
    """

    def __init__(self) -> None:
        self._last = 0
        self._chance: list[int] = []
        self._lock = threading.Lock()  # the writer's thread makes keys too

    def __call__(self) -> int:
        now = time.time_ns() // 1_000_000 - EPOCH
        with self._lock:
            if not self._chance:
                words = array("I", secrets.token_bytes(4 * AHEAD))
                self._chance = [word >> (32 - CHANCE) for word in words]
            self._last = max(self._last + 1, now << CHANCE | self._chance.pop())
            return self._last
