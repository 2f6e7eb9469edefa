"""Number sets of IMAP, such as "1,3:15,40:*", as SQL (RFC 9051, sequence-set)."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, or_

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_PARTS = 1000  # per set
MAX_RANGES = 250  # per set, after joining adjacent ranges
MAX_DIGITS = 10  # digits of a number
UID_LIMIT = 1 << 32  # above all UIDs (RFC 9051, section 2.3.1.1)
MAX_SMALL_SET = 1000  # numbers


def is_in_set_sql(
    set_text: str, number: Any, highest_number: Callable[[], Any], *, input_name: str
) -> ColumnElement[bool]:
    """Build the condition that the number is in the set.

    `highest_number` returns the SQL for "*". Raises InvalidInput if the set is malformed or has too
    many parts.
    """
    parts = [part.strip() for part in set_text.split(",", MAX_PARTS)]
    if len(parts) > MAX_PARTS:
        raise InvalidInput(
            f"A set has at most {MAX_PARTS} parts.",
            constraint=ValidationConstraint.MAX,
            path=[input_name],
        )
    ranges: list[tuple[int, int]] = []
    open_: list[int] = []  # the starts of ranges that end with "*"
    for part in parts:
        low, colon, high = part.partition(":")
        range_ends = [_parse_number(end, input_name) for end in ((low, high) if colon else (low,))]
        known_ends = [end for end in range_ends if end is not None]
        if None in range_ends:
            open_ += known_ends or [UID_LIMIT]
        else:
            ranges.append((min(known_ends), max(known_ends)))
    terms = _ranges_sql(ranges, number, input_name)
    if open_:  # "9:*" includes the highest number even if it is below 9
        terms += [number >= min(open_), number == highest_number()]
    return or_(*terms)


def is_small_set(set_text: str) -> bool:
    """True if the set has few numbers, so that an index lookup of each finds the rows."""
    number_count = 0
    for part in set_text.split(",", MAX_PARTS):
        range_ends = [end.strip() for end in part.split(":", 1)]
        if not all(
            end.isascii() and end.isdigit() and len(end) <= MAX_DIGITS for end in range_ends
        ):
            return False
        number_count += abs(int(range_ends[-1]) - int(range_ends[0])) + 1
    return number_count <= MAX_SMALL_SET


def _ranges_sql(
    ranges: list[tuple[int, int]], number: ColumnElement[int], input_name: str
) -> list[ColumnElement[bool]]:
    """Build the SQL of ranges: adjacent ranges are joined, single numbers become a list."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    single = [low for low, high in joined if low == high]
    wide = [item for item in joined if item[0] != item[1]]
    if len(wide) > MAX_RANGES:
        text = f"A set has at most {MAX_RANGES} ranges."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=[input_name])
    terms: list[ColumnElement[bool]] = [number.between(low, high) for low, high in wide]
    return [*terms, number.in_(single)] if single else terms


def _parse_number(number_text: str, input_name: str) -> int | None:
    """Return the number, or None for "*". Raises InvalidInput."""
    if number_text == "*":
        return None
    if (
        number_text.isascii()
        and number_text.isdigit()
        and len(number_text) <= MAX_DIGITS
        and 0 < int(number_text) < UID_LIMIT
    ):
        return int(number_text)
    text = 'Must be a set of numbers such as "1,3:15,40:*".'
    raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=[input_name])
