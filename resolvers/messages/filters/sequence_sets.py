"""Number sets of IMAP, such as "1,3:15,40:*", as SQL (RFC 9051, sequence-set)."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, or_

from models.errors import Invalid

PARTS = 1000  # per set
RANGES = 250  # per set, after joining adjacent ranges
LONGEST = 10  # digits of a number
HIGHEST = 1 << 32  # above all UIDs (RFC 9051, section 2.3.1.1)
SMALL = 1000  # numbers


def number_set(
    given: str, number: Any, highest: Callable[[], Any], *, name: str
) -> ColumnElement[bool]:
    """Build the condition that the number is in the set.

    `highest_number` returns the SQL for "*". Raises InvalidInput if the set is malformed or has too
    many parts.
    """
    parts = [part.strip() for part in given.split(",", PARTS)]
    if len(parts) > PARTS:
        raise Invalid(f"a set has at most {PARTS} parts", constraint="max", path=[name])
    ranges: list[tuple[int, int]] = []
    open_: list[int] = []  # the starts of ranges that end with "*"
    for part in parts:
        low, colon, high = part.partition(":")
        ends = [_end(end, name) for end in ((low, high) if colon else (low,))]
        known = [end for end in ends if end is not None]
        if None in ends:
            open_ += known or [HIGHEST]
        else:
            ranges.append((min(known), max(known)))
    terms = _between(ranges, number, name)
    if open_:  # "9:*" includes the highest number even if it is below 9
        terms += [number >= min(open_), number == highest()]
    return or_(*terms)


def is_small_set(given: str) -> bool:
    """True if the set has few numbers, so that an index lookup of each finds the rows."""
    many = 0
    for part in given.split(",", PARTS):
        ends = [end.strip() for end in part.split(":", 1)]
        if not all(end.isascii() and end.isdigit() and len(end) <= LONGEST for end in ends):
            return False
        many += abs(int(ends[-1]) - int(ends[0])) + 1
    return many <= SMALL


def _between(
    ranges: list[tuple[int, int]], number: ColumnElement[int], name: str
) -> list[ColumnElement[bool]]:
    """Build the SQL of ranges: adjacent ranges are joined, single numbers become a list."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    single = [low for low, high in joined if low == high]
    wide = [one for one in joined if one[0] != one[1]]
    if len(wide) > RANGES:
        text = f"a set has at most {RANGES} ranges"
        raise Invalid(text, constraint="max", path=[name])
    terms: list[ColumnElement[bool]] = [number.between(low, high) for low, high in wide]
    return [*terms, number.in_(single)] if single else terms


def _end(given: str, name: str) -> int | None:
    """Return the number, or None for "*". Raises InvalidInput."""
    if given == "*":
        return None
    if given.isascii() and given.isdigit() and len(given) <= LONGEST and 0 < int(given) < HIGHEST:
        return int(given)
    text = 'a set of numbers is like "1,3:15,40:*"'
    raise Invalid(text, constraint="pattern", path=[name])
