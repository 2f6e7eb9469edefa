"""Comparators and match types (RFC 5228, 2.7; RFC 4790; RFC 5231)."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mail.sieve import limits

OCTET, CASEMAP, NUMERIC = "i;octet", "i;ascii-casemap", "i;ascii-numeric"
PLAIN = "vnd.merganser.plain"  # ours: for :is and :contains
COMPARATORS = (OCTET, CASEMAP, NUMERIC, PLAIN)
RELATIONS = ("gt", "ge", "lt", "le", "eq", "ne")
_SLOWER = 32  # a search with question marks than one without
_DIGITS = re.compile(r"[0-9]+", re.ASCII)

Matched = tuple[str, ...]  # the whole, then what each wildcard stood for


def folded(text: str) -> str:
    """The text as i;ascii-casemap compares it (RFC 4790, section 9.2): as long as it was."""
    if text.isascii():
        return text.upper()
    return text.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def same(text: str) -> str:
    """The text as i;octet compares it."""
    return text


def plain(text: str) -> str:
    """The text as our own comparator has it: in no case, each white space one blank, none around.

    It may be shorter or longer than it was.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


def numeric(text: str) -> str:
    """What has the order of i;ascii-numeric (RFC 4790, section 9.1); what is no number is last."""
    found = _DIGITS.match(text)
    digits = found[0].lstrip("0") if found else ""
    return f"{len(digits):09}{digits}" if found else "~"


def related(relation: str, text: str, key: str, comparator: str) -> bool:
    """Whether a text stands so to a key, in the order of the comparator."""
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
FOLDS = {OCTET: same, CASEMAP: folded, PLAIN: plain}  # of comparators by which texts are equal


@dataclass(frozen=True, slots=True)
class Wild:
    """A pattern of :matches; time is bounded by the text's length times `width`."""

    segments: tuple["_Segment", ...]  # what stands between the asterisks
    width: int

    def match(self, text: str, compared: str) -> Matched | None:
        """What the text and each wildcard is; each asterisk takes as little as it can.

        `compared` is the text as the comparator sees it, character by character.
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
    """Characters of a pattern, in runs between its question marks."""

    runs: tuple[tuple[int, str], ...]  # where each begins
    marks: tuple[int, ...]
    length: int

    def fits(self, text: str, at: int) -> bool:
        if at + self.length > len(text):
            return False
        return all(text.startswith(run, at + offset) for offset, run in self.runs)

    def found_in(self, text: str, start: int) -> int:
        """Where it first is; -1: nowhere."""
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
    """Read a pattern of :matches; a backslash takes its meaning from what follows it."""
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
    """The steps that it takes to look through so many characters."""
    return 1 + length * width // limits.PER_STEP
