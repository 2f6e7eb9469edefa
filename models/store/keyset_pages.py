"""Keyset pages: a cursor has the sort key of a row and the name of its list."""

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from models.errors import Invalid

Row = TypeVar("Row")
Sortable = datetime | str | int

MOST = 250  # a larger page is refused, not cut, so that clients notice
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST = 2048  # characters of a cursor


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the list of this `ordering`: at the row (at, id)."""

    ordering: str
    at: Sortable
    id: int

    def __str__(self) -> str:
        plain = f"1|{self.ordering}|{_written(self.at)}|{self.id}"
        return base64.urlsafe_b64encode(f"{plain}|{_check(plain)}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, ordering: str, *, path: str) -> "Cursor":
        """Decode a cursor of a client.

        Raises InvalidInput if it is no cursor, or one of another list or ordering.
        """
        try:
            decoded = base64.urlsafe_b64decode(text[:LONGEST] + "=" * (-len(text) % 4)).decode()
            plain, check = decoded.rsplit("|", 1)
            version, name, rest = plain.split("|", 2)
            at, key = rest.rsplit("|", 1)
            if (version, name, check) != ("1", ordering, _check(plain)):
                raise ValueError(text)
            return cls(name, _read(at), int(key))
        except (ValueError, OverflowError) as problem:
            raise Invalid(
                "not a cursor of this list", constraint="cursor", path=[path]
            ) from problem


def _written(at: Sortable) -> str:
    if isinstance(at, datetime):
        return f"t{(at - EPOCH) // timedelta(microseconds=1)}"  # a float would lose the last ones
    return f"n{at}" if isinstance(at, int) else f"s{at}"


def _read(text: str) -> Sortable:
    kind, value = text[:1], text[1:]
    if kind == "t":
        return EPOCH + timedelta(microseconds=int(value))
    if kind == "n":
        return int(value)
    if kind == "s":
        return value
    raise ValueError(text)


def _check(plain: str) -> str:
    return f"{zlib.crc32(plain.encode()):08x}"


def ordering(name: str, conditions: object = None) -> str:
    """Return the name of an ordering, with a digest of the conditions that narrow the list."""
    if not conditions:
        return name
    return f"{name}~{hashlib.sha256(repr(conditions).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Rows in reading order, and whether there are more before and after them."""

    rows: Sequence[Row]
    next: bool
    previous: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for `count` rows after a cursor or, if `is_backward`, before it."""

    ordering: str
    count: int = 20
    place: Cursor | None = None
    back: bool = False

    @classmethod
    def of(
        cls,
        ordering: str,
        first: int | None,
        after: str | None,
        last: int | None,
        before: str | None,
    ) -> "Ask":
        """Convert the page arguments of a client. Raises InvalidInput if they contradict."""
        if first is not None and last is not None:
            raise Invalid("ask for the first or the last, not both", constraint="page")
        back = last is not None
        if (after if back else before) is not None:
            raise Invalid("first goes with after, last with before", constraint="page")
        count = last if last is not None else 20 if first is None else first
        if not 0 <= count <= MOST:
            raise Invalid(f"ask for 0 to {MOST} at a time", constraint="page")
        name, text = ("before", before) if back else ("after", after)
        place = Cursor.parse(text, ordering, path=name) if text is not None else None
        return cls(ordering, count, place, back)

    def page(self, found: Sequence[Row], *, more: bool = False) -> Page[Row]:
        """Return the page of these rows, which were selected in the order of the request.

        There is another page if there are more rows than requested, or if `has_more` is true.
        """
        more = more or len(found) > self.count
        rows = found[max(0, len(found) - self.count) :] if self.back else found[: self.count]
        has_cursor = self.place is not None  # a guess without a query, which Relay allows
        return Page(
            rows,
            next=has_cursor if self.back else more,
            previous=more if self.back else has_cursor,
        )
