"""A cache of the JSON of rows of lists: what clients read again is not computed again.

A row is found by all of its values. So a changed row is another row, and no entry has to be
removed after a change. This requires that the JSON depends on the values of the row only, not on
time, caller or credential.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from graph.execution.response_size import ResponseBudget
from graph.http.graphql_request import encode_json

DEFAULT_MAX_BYTES = 16 << 20  # bytes of memory in one process
MAX_ROW_BYTES = 4096  # bytes of JSON; larger rows are encoded with the response, in steps
ROW_MEMORY_OVERHEAD = 2000  # bytes of the values of a row and of an entry, besides their text
TEXT_COPIES = 2  # of a row's text: in its values, and in the JSON
MARK_COUNT = 1 << 16  # a power of two
MAX_MARKED_ROWS = MARK_COUNT // 4

CompletedRow = tuple[Any, int]  # the row, and the bytes that the response budget counts for it
CompleteRowFunction = Callable[[Any, ResponseBudget], CompletedRow]

ROW_COUNTS: Counter[str] = Counter()  # of completed rows, by outcome


class CompletedRowCache:
    """The completed rows of all lists of a process, in at most `max_bytes` of memory.

    A row is stored when it is completed for the second time, so that rows that are read once, such
    as those of an export, don't displace others. Marks tell which rows were completed before.
    Different rows can have the same mark, and are then stored too early.

    The stored rows are in two generations. When the recent generation uses half of the memory, it
    becomes the older one, and the former older one is dropped.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.set_limit_and_clear(max_bytes)

    def set_limit_and_clear(self, max_bytes: int) -> None:
        """Set the limit and remove all rows. With 0, no row is stored."""
        self.max_bytes = max_bytes
        self._recent: dict[object, dict[Any, CompletedRow]] = {}
        self._older: dict[object, dict[Any, CompletedRow]] = {}
        self._recent_bytes = 0
        self._marks, self._marked_count = bytearray(MARK_COUNT), 0

    def rows_of_list(
        self, owner: object
    ) -> tuple[dict[Any, CompletedRow], dict[Any, CompletedRow]]:
        """Return the recent and the older rows of an owner."""
        recent = self._recent.get(owner)
        if recent is None:
            recent = self._recent[owner] = {}
        return recent, self._older.get(owner, _NO_ROWS)

    def add_at_second_time(
        self, rows: dict[Any, CompletedRow], row: Any, completed: CompletedRow
    ) -> CompletedRow:
        """Encode and add a row to the recent rows of its owner, or mark it if it has no mark.

        Returns the row, encoded if it was added.
        """
        mark = hash(row) % MARK_COUNT
        if self._marks[mark] and self.max_bytes:
            completed = _encode_row(completed)
            self.add(rows, row, completed)
        else:
            self._marks[mark] = True
            self._marked_count += 1
            if self._marked_count > MAX_MARKED_ROWS:
                self._marks, self._marked_count = bytearray(MARK_COUNT), 0
        return completed

    def add(self, rows: dict[Any, CompletedRow], row: Any, completed: CompletedRow) -> None:
        """Add an encoded row to the recent rows of its owner."""
        rows[row] = completed
        self._recent_bytes += completed[1] * TEXT_COPIES + ROW_MEMORY_OVERHEAD
        if self._recent_bytes * 2 > self.max_bytes:
            self._older, self._recent, self._recent_bytes = self._recent, {}, 0


def _encode_row(completed: CompletedRow) -> CompletedRow:
    """Return the row as encoded JSON, in a copy: what orjson returns occupies 4 KiB."""
    json_copy = bytes(memoryview(encode_json(completed[0])))
    return orjson.Fragment(json_copy), completed[1]


_NO_ROWS: dict[Any, CompletedRow] = {}
COMPLETED_ROWS = CompletedRowCache()


class RowsFunction:
    """A function that completes the unconverted rows of a list, or takes them from the cache.

    A row that the cache stores is encoded JSON (`orjson.Fragment`).
    """

    __slots__ = ("_complete_row",)

    def __init__(self, complete_row: CompleteRowFunction) -> None:
        self._complete_row = complete_row

    def __call__(self, rows: Sequence[Any], budget: ResponseBudget) -> list[Any]:
        """Return the completed rows. Raises what `complete_row` raises, and ResponseTooLarge."""
        cache = COMPLETED_ROWS
        recent, older = cache.rows_of_list(self)
        completed_rows, size, computed_count = [], 0, 0
        for row in rows:
            completed = recent.get(row)
            if completed is None:
                completed = older.get(row) if older else None
                if completed is not None:
                    cache.add(recent, row, completed)
                else:
                    completed = self._complete_row(row, budget)
                    computed_count += 1
                    if completed[1] <= MAX_ROW_BYTES:
                        completed = cache.add_at_second_time(recent, row, completed)
            completed_rows.append(completed[0])
            size += completed[1]
        ROW_COUNTS["computed"] += computed_count
        ROW_COUNTS["cached"] += len(rows) - computed_count
        budget.add_response_bytes(size)
        return completed_rows
