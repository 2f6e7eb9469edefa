"""The part of a sorted list that each process returns for a page of the list of all processes."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from models.store.keyset_pages import PageRequest

Row = TypeVar("Row")
SortKey = tuple[Any, Any]  # a time, text or number, and a number or text


@dataclass(frozen=True, slots=True)
class ScanWindow:
    """The part of a sorted list that a page needs: `count` items after a key, and one more."""

    count: int
    after: SortKey | None
    is_descending: bool

    @classmethod
    def from_page_request(
        cls, page_request: PageRequest, after: SortKey | None, *, is_descending: bool
    ) -> "ScanWindow":
        """Return the window of a page of a list with this direction."""
        descends = is_descending is not page_request.is_backward
        return cls(page_request.count, after, descends)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "ScanWindow":
        """Return the window of the JSON values of `to_arguments`."""
        after = arguments["after"]
        if after is not None:
            value, key, is_time = after
            after = (datetime.fromisoformat(value) if is_time else value), key
        return cls(arguments["count"], after, arguments["descending"])

    def to_arguments(self) -> dict[str, Any]:
        """Return the window as JSON values."""
        after: tuple[Any, Any, bool] | None = None
        if self.after is not None:
            value, key = self.after
            is_time = isinstance(value, datetime)
            after = (value.isoformat() if is_time else value), key, is_time
        return {"count": self.count, "after": after, "descending": self.is_descending}

    def items_in_scan_order(
        self, items: Iterable[Row], sort_key: Callable[[Row], SortKey]
    ) -> list[Row]:
        """Return the items of the window, in the order of the scan."""
        if self.after is not None:
            after = self.after
            items = (
                item
                for item in items
                if (sort_key(item) < after if self.is_descending else sort_key(item) > after)
            )
        select = heapq.nlargest if self.is_descending else heapq.nsmallest
        return select(self.count + 1, items, key=sort_key)

    def numbers_in_scan_order(self, numbers: Iterable[int], after: int | None) -> list[int]:
        """Return the numbers of the window of a list of numbers, in the order of the scan.

        `after` is the number that `self.after` stands for. This is faster than with a sort key.
        """
        if after is not None:
            numbers = [
                number
                for number in numbers
                if (number < after if self.is_descending else number > after)
            ]
        return (heapq.nlargest if self.is_descending else heapq.nsmallest)(self.count + 1, numbers)
