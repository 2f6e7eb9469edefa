"""A cache of encoded rows of lists in the memory of a process.

A row is found by all of its values. So a changed row is another row, and no entry has to be
removed after a change. This requires that the JSON depends on the values of the row only, not on
time, caller or credential.
"""

import time
from sys import getsizeof
from typing import Any, NamedTuple

DEFAULT_MAX_BYTES = 16 << 20  # bytes of memory in one process
MAX_ENTRY_BYTES = 16 << 10  # bytes of memory of one row; larger ones are not stored
ENTRY_OVERHEAD = 400  # bytes of memory besides the values of a row and its JSON
MARK_COUNT = 1 << 16  # a power of two
MAX_MARKED_ROWS = MARK_COUNT // 4

CompletedRow = tuple[Any, int]  # the row, and the bytes that the response budget counts for it
RowsByValues = dict[Any, CompletedRow]


class RowsOfList(NamedTuple):
    """The stored rows of one list, in the two generations of the cache."""

    recent: RowsByValues
    older: RowsByValues


class RowCache:
    """The encoded rows of all lists of a process, in at most `max_bytes` of memory.

    A row is stored when it is completed for the second time, so that rows that are read once, such
    as those of an export, don't displace others. Marks tell which rows were completed before.
    Different rows can have the same mark, and are then stored too early.

    The stored rows are in two generations. When the recent generation has filled half of the
    memory, it becomes the older one, and the former older one is dropped.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.used_at = 0.0  # seconds since 1970
        self._recent: dict[object, RowsByValues] = {}
        self._older: dict[object, RowsByValues] = {}
        self._recent_bytes = self._older_bytes = 0
        self._marks, self._marked_count = bytearray(MARK_COUNT), 0

    def set_limit_and_clear(self, max_bytes: int) -> None:
        """Set the limit and remove all rows. With 0, no row is stored."""
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self._recent, self._older = {}, {}
        self._recent_bytes = self._older_bytes = 0
        self._marks, self._marked_count = bytearray(MARK_COUNT), 0

    @property
    def used_bytes(self) -> int:
        """The memory of the stored rows in bytes, estimated."""
        return self._recent_bytes + self._older_bytes

    def rows_of_list(self, owner: object) -> RowsOfList:
        """Return the stored rows of a list. `owner` completes its rows."""
        self.used_at = time.time()
        recent = self._recent.get(owner)
        if recent is None:
            recent = self._recent[owner] = {}
        return RowsOfList(recent, self._older.get(owner, _NO_ROWS))

    def check_and_mark(self, row: Any) -> bool:
        """Return True if a row was completed before, so that it is to be stored. Mark the row."""
        mark = hash(row) % MARK_COUNT
        if self._marks[mark]:
            return self.max_bytes > 0
        self._marks[mark] = True
        self._marked_count += 1
        if self._marked_count > MAX_MARKED_ROWS:
            self._marks, self._marked_count = bytearray(MARK_COUNT), 0
        return False

    def add(self, rows: RowsByValues, row: Any, completed: CompletedRow) -> None:
        """Add an encoded row to the recent rows of a list, unless it is large.

        If there is no room for it, a new generation begins. Then the row is not added either, since
        `rows` belongs to the older generation.
        """
        size = entry_bytes(row, completed)
        if size > MAX_ENTRY_BYTES:
            return
        if (self._recent_bytes + size) * 2 > self.max_bytes:
            self._older, self._older_bytes = self._recent, self._recent_bytes
            self._recent, self._recent_bytes = {}, 0
            return
        rows[row] = completed
        self._recent_bytes += size


def entry_bytes(row: Any, completed: CompletedRow) -> int:
    """Return the memory of a row, its values and its JSON, in bytes."""
    return getsizeof(row) + sum(map(getsizeof, row)) + completed[1] + ENTRY_OVERHEAD


_NO_ROWS: RowsByValues = {}
ROW_CACHE = RowCache()
