"""Keys: 64-bit numbers that tell when, roughly, and nothing else."""

import secrets
import threading
import time

EPOCH = 1_735_689_600_000  # 2025 began, in milliseconds; 41 bits of them last until 2094


class Keys:
    """Makes keys: 41 bits of milliseconds, 22 of chance, each above the one before.

    A key is there before its row, rows lie in the order they came, a deleted row's key
    never returns (the full-text index counts on it), and nobody can count our mail by them.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()  # the writer's thread makes keys too

    def __call__(self) -> int:
        now = time.time_ns() // 1_000_000 - EPOCH
        with self._lock:
            self._last = max(self._last + 1, now << 22 | secrets.randbits(22))
            return self._last
