"""Sets of numbers as IMAP writes them, such as "1,3:15,40:*", as SQL."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, or_

from models.errors import Invalid

PARTS = 1000  # of one set
RANGES = 250  # apart from each other, of one set
LONGEST = 10  # digits of a number
HIGHEST = 1 << 32  # above all uids (RFC 9051, section 2.3.1.1)
SMALL = 1000  # numbers


def number_set(
    given: str, number: Any, highest: Callable[[], Any], *, name: str
) -> ColumnElement[bool]:
    """Whether the number is in the set; "*" is the highest there is, which `highest` tells."""
    parts = [part.strip() for part in given.split(",", PARTS)]
    if len(parts) > PARTS:
        raise Invalid(f"a set has at most {PARTS} parts", constraint="max", path=[name])
    ranges: list[tuple[int, int]] = []
    open_: list[int] = []  # where those begin that end with "*"
    for part in parts:
        low, colon, high = part.partition(":")
        ends = [_end(end, name) for end in ((low, high) if colon else (low,))]
        known = [end for end in ends if end is not None]
        if None in ends:
            open_ += known or [HIGHEST]
        else:
            ranges.append((min(known), max(known)))
    terms = _between(ranges, number, name)
    if open_:  # the highest is in them even where it is below their beginning
        terms += [number >= min(open_), number == highest()]
    return or_(*terms)


def is_small_set(given: str) -> bool:
    """True if the set has few numbers, whatever its folder has: then they lead to its rows."""
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
    """Ranges as SQL, those that meet as one, single numbers as a list."""
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
    if given == "*":
        return None
    if given.isascii() and given.isdigit() and len(given) <= LONGEST and 0 < int(given) < HIGHEST:
        return int(given)
    text = 'a set of numbers is like "1,3:15,40:*"'
    raise Invalid(text, constraint="pattern", path=[name])
