"""Keyset pages: a cursor has the sort key of a row and the name of its list."""

import base64
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

Item = TypeVar("Item")
Value = TypeVar("Value")
SortValue = datetime | str | int | float

MAX_PAGE_SIZE = 250  # a larger page is refused, not cut, so that clients notice
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_INT64 = (1 << 63) - 1
MAX_CURSOR_LENGTH = 2048  # characters of a cursor


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the list of this `ordering`: at the row (at, id)."""

    ordering: str
    sort_value: SortValue
    id: int

    def __str__(self) -> str:
        plain = f"1|{self.ordering}|{_encode_sort_value(self.sort_value)}|{self.id}"
        return (
            base64.urlsafe_b64encode(f"{plain}|{_cursor_checksum(plain)}".encode())
            .decode()
            .rstrip("=")
        )

    @classmethod
    def parse(cls, text: str, ordering: str, *, path: str) -> "Cursor":
        """Decode a cursor of a client.

        Raises InvalidInput if it is no cursor, or one of another list or ordering.
        """
        try:
            decoded = base64.urlsafe_b64decode(
                text[:MAX_CURSOR_LENGTH] + "=" * (-len(text) % 4)
            ).decode()
            plain, check = decoded.rsplit("|", 1)
            version, name, rest = plain.split("|", 2)
            at, key = rest.rsplit("|", 1)
            if (version, name, check) != ("1", ordering, _cursor_checksum(plain)):
                raise ValueError(text)
            return cls(name, _decode_sort_value(at), _int64_from_text(key))
        except (ValueError, OverflowError) as problem:
            raise _cursor_refusal(path) from problem


def _cursor_refusal(argument_name: str) -> InvalidInput:
    return InvalidInput(
        "Not a cursor of this list.",
        constraint=ValidationConstraint.CURSOR,
        path=[argument_name],
    )


def _encode_sort_value(value: SortValue) -> str:
    if isinstance(value, datetime):
        return (
            f"t{(value - EPOCH) // timedelta(microseconds=1)}"  # a float would lose the last ones
        )
    if isinstance(value, float):
        return f"f{value!r}"
    return f"n{value}" if isinstance(value, int) else f"s{value}"


def _decode_sort_value(text: str) -> SortValue:
    kind, value = text[:1], text[1:]
    if kind == "t":
        return EPOCH + timedelta(microseconds=int(value))
    if kind == "n":
        return _int64_from_text(value)
    if kind == "f" and math.isfinite(number := float(value)):
        return number
    if kind == "s" and "\0" not in value:  # PostgreSQL has no texts with NUL
        return value
    raise ValueError(text)


def _int64_from_text(text: str) -> int:
    """Return an integer of 64 bit, as databases have it. Raises ValueError for a larger one."""
    number = int(text)
    if abs(number) > MAX_INT64:
        raise ValueError(text)
    return number


def _cursor_checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def ordering_name(name: str, conditions: object = None) -> str:
    """Return the name of an ordering, with a digest of the conditions that narrow the list."""
    if not conditions:
        return name
    return f"{name}~{hashlib.sha256(repr(conditions).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Rows in reading order, and whether there are more before and after them.

    A page whose search ended before it was full has a cursor of the place where it ended.
    """

    rows: Sequence[Item]
    has_next: bool
    has_previous: bool
    search_start_cursor: Cursor | None = None  # of a page that was read backwards
    search_end_cursor: Cursor | None = None


class PageSizes(NamedTuple):
    """Numbers of items on a page: the default, and the highest that a client can request."""

    default: int
    max: int


USUAL_PAGE_SIZES = PageSizes(default=20, max=MAX_PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for `count` rows after a cursor or, if `is_backward`, before it."""

    ordering: str
    count: int = 20
    cursor: Cursor | None = None
    is_backward: bool = False

    def cursor_sort_value(self, value_type: type[Value]) -> Value | None:
        """Return the sort value of the cursor; None without one.

        Raises InvalidInput if the value has another type.
        """
        if self.cursor is None:
            return None
        if not isinstance(self.cursor.sort_value, value_type):
            raise self.cursor_refusal()
        return self.cursor.sort_value

    def cursor_refusal(self) -> InvalidInput:
        """Return the error for a cursor that is not one of this list."""
        return _cursor_refusal("before" if self.is_backward else "after")

    @classmethod
    def from_arguments(  # noqa: PLR0913 - the page arguments of GraphQL
        cls,
        ordering: str,
        first: int | None,
        after: str | None,
        last: int | None,
        before: str | None,
        *,
        sizes: PageSizes = USUAL_PAGE_SIZES,
    ) -> "PageRequest":
        """Convert the page arguments of a client. Raises InvalidInput if they contradict."""
        if first is not None and last is not None:
            raise InvalidInput(
                "`first` and `last` can't be combined.", constraint=ValidationConstraint.PAGE
            )
        back = last is not None
        if (after if back else before) is not None:
            raise InvalidInput(
                "`after` requires `first`, and `before` requires `last`.",
                constraint=ValidationConstraint.PAGE,
            )
        count = last if last is not None else sizes.default if first is None else first
        if not 0 <= count <= sizes.max:
            raise InvalidInput(
                f"A page has from 0 to {sizes.max} items.", constraint=ValidationConstraint.PAGE
            )
        name, text = ("before", before) if back else ("after", after)
        cursor = Cursor.parse(text, ordering, path=name) if text is not None else None
        return cls(ordering, count, cursor, back)

    def page_with_search_end(self, page: Page[Item], end: Cursor) -> Page[Item]:
        """Return a page of this request whose search ended at a cursor."""
        if self.is_backward:
            return replace(page, search_start_cursor=end)
        return replace(page, search_end_cursor=end)

    def page_from_rows(self, rows_found: Sequence[Item], *, has_more: bool = False) -> Page[Item]:
        """Return the page of these rows, which were selected in the order of the request.

        There is another page if there are more rows than requested, or if `has_more` is true.
        """
        has_more = has_more or len(rows_found) > self.count
        rows = (
            rows_found[max(0, len(rows_found) - self.count) :]
            if self.is_backward
            else rows_found[: self.count]
        )
        has_cursor = self.cursor is not None  # a guess without a query, which Relay allows
        return Page(
            rows,
            has_next=has_cursor if self.is_backward else has_more,
            has_previous=has_more if self.is_backward else has_cursor,
        )
