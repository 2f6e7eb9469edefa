"""Comparators and match types (RFC 5228, section 2.7; RFC 4790; RFC 5231)."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mail.sieve import limits

OCTET, CASEMAP, NUMERIC = "i;octet", "i;ascii-casemap", "i;ascii-numeric"
PLAIN = "vnd.merganser.plain"  # an extension of this server, for :is and :contains
COMPARATORS = (OCTET, CASEMAP, NUMERIC, PLAIN)
RELATIONS = ("gt", "ge", "lt", "le", "eq", "ne")
_SLOWER = 32  # cost of a search with question marks, relative to one without
_DIGITS = re.compile(r"[0-9]+", re.ASCII)

Matched = tuple[str, ...]  # the whole text, then the text of each wildcard


def folded(text: str) -> str:
    """Return the key of i;ascii-casemap (RFC 4790, section 9.2), of the same length."""
    if text.isascii():
        return text.upper()
    return text.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def same(text: str) -> str:
    """Return the key of i;octet: the text itself."""
    return text


def plain(text: str) -> str:
    """Return the key of vnd.merganser.plain: case folded, white space collapsed.

    The key can be shorter or longer than the text.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


def numeric(text: str) -> str:
    """Return the sort key of i;ascii-numeric (RFC 4790, section 9.1). Other text is last."""
    found = _DIGITS.match(text)
    digits = found[0].lstrip("0") if found else ""
    return f"{len(digits):09}{digits}" if found else "~"


def related(relation: str, text: str, key: str, comparator: str) -> bool:
    """True if a value has a relation to another, in the order of a comparator."""
    order = _ORDERS[comparator]
    one, other = order(text), order(key)
    sign = (one > other) - (one < other)
    return {
        "gt": sign > 0,
        "ge": sign >= 0,
        "lt": sign < 0,
        "le": sign <= 0,
        "eq": sign == 0,
        "ne": sign != 0,
    }[relation]


_ORDERS = {OCTET: same, CASEMAP: folded, NUMERIC: numeric}
FOLDS = {OCTET: same, CASEMAP: folded, PLAIN: plain}  # comparators that test equality


@dataclass(frozen=True, slots=True)
class Wild:
    """A pattern of :matches. Its cost is at most the text length times `cost_per_character`."""

    segments: tuple["_Segment", ...]  # the parts between the asterisks
    width: int

    def match(self, text: str, compared: str) -> Matched | None:
        """Return the text and the part of each wildcard, or None.

        An asterisk matches as little as possible. `folded_text` is the key of the text, with the
        same length.
        """
        first, *between = self.segments
        if not first.fits(compared, 0) or (not between and len(text) != first.length):
            return None
        found, end = [text, *first.taken(text, 0)], first.length
        last = between.pop() if between else None
        for segment in between:
            at = segment.found_in(compared, end)
            if at < 0:
                return None
            found += [text[end:at], *segment.taken(text, at)]
            end = at + segment.length
        if last is not None:
            at = len(text) - last.length
            if at < end or not last.fits(compared, at):
                return None
            found += [text[end:at], *last.taken(text, at)]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of a pattern without asterisks: literal runs and question marks."""

    runs: tuple[tuple[int, str], ...]  # offset and text
    marks: tuple[int, ...]
    length: int

    def fits(self, text: str, at: int) -> bool:
        if at + self.length > len(text):
            return False
        return all(text.startswith(run, at + offset) for offset, run in self.runs)

    def found_in(self, text: str, start: int) -> int:
        """Return the first offset from `start` on where the segment matches, else -1."""
        if not self.runs:
            return start if start + self.length <= len(text) else -1
        offset, run = self.runs[0]
        at = text.find(run, start + offset)
        while at >= 0 and not self.fits(text, at - offset):
            at = text.find(run, at + 1)
        return at - offset if at >= 0 else -1

    def taken(self, text: str, at: int) -> Iterable[str]:
        return (text[at + mark] for mark in self.marks)


def wild(pattern: str) -> Wild:
    """Parse a pattern of :matches. A backslash makes the next character literal."""
    parts: list[list[str | None]] = [[]]
    signs = iter(pattern)
    for sign in signs:
        if sign == "*":
            parts.append([])
        elif sign == "?":
            parts[-1].append(None)
        else:
            parts[-1].append(next(signs, sign) if sign == "\\" else sign)
    segments = tuple(_segment(part) for part in parts)
    slowest = max((len(one.runs) for one in segments if one.marks), default=0)
    return Wild(segments, 1 + _SLOWER * slowest)


def _segment(part: Sequence[str | None]) -> _Segment:
    marks = tuple(at for at, sign in enumerate(part) if sign is None)
    runs: list[tuple[int, str]] = []
    start = 0
    for mark in (*marks, len(part)):
        if mark > start:
            runs.append((start, "".join(sign or "" for sign in part[start:mark])))
        start = mark + 1
    return _Segment(tuple(runs), marks, len(part))


def cost(length: int, width: int = 1) -> int:
    """Return the steps that a comparison with a text of this length counts."""
    return 1 + length * width // limits.PER_STEP
