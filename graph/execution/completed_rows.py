"""Completion of the rows of a list, each of them from the row cache if it is there."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from graph.execution.response_size import ResponseBudget
from graph.http.graphql_request import encode_json
from models.runtime import row_cache
from models.runtime.row_cache import CompletedRow

MAX_ROW_BYTES = 4096  # bytes of JSON; larger rows are encoded with the response, in steps

CompleteRowFunction = Callable[[Any, ResponseBudget], CompletedRow]

ROW_COUNTS: Counter[str] = Counter()  # of completed rows, by outcome


class RowsFunction:
    """A function that completes the unconverted rows of a list, or takes them from the cache.

    A row that the cache stores is encoded JSON (`orjson.Fragment`).
    """

    __slots__ = ("_complete_row",)

    def __init__(self, complete_row: CompleteRowFunction) -> None:
        self._complete_row = complete_row

    def __call__(self, rows: Sequence[Any], budget: ResponseBudget) -> list[Any]:
        """Return the completed rows. Raises what `complete_row` raises, and ResponseTooLarge."""
        cache = row_cache.ROW_CACHE
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
                    if completed[1] <= MAX_ROW_BYTES and cache.check_and_mark(row):
                        completed = _encode_row(completed)
                        cache.add(recent, row, completed)
            completed_rows.append(completed[0])
            size += completed[1]
        ROW_COUNTS["computed"] += computed_count
        ROW_COUNTS["cached"] += len(rows) - computed_count
        budget.add_response_bytes(size)
        return completed_rows


def _encode_row(completed: CompletedRow) -> CompletedRow:
    """Return the row as encoded JSON, in a copy: what orjson returns occupies 4 KiB."""
    json_copy = bytes(memoryview(encode_json(completed[0])))
    return orjson.Fragment(json_copy), completed[1]
