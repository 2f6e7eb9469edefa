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
_QUESTION_MARK_COST = 32  # cost of a search with question marks, relative to one without
_DIGITS = re.compile(r"[0-9]+", re.ASCII)

MatchGroups = tuple[str, ...]  # the whole text, then the text of each wildcard


def ascii_casemap_key(text: str) -> str:
    """Return the key of i;ascii-casemap (RFC 4790, section 9.2), of the same length."""
    if text.isascii():
        return text.upper()
    return text.encode("utf-8", "surrogatepass").upper().decode("utf-8", "surrogatepass")


def octet_key(text: str) -> str:
    """Return the key of i;octet: the text itself."""
    return text


def casefolded_single_spaced_key(text: str) -> str:
    """Return the key of vnd.merganser.plain: case folded, white space collapsed.

    The key can be shorter or longer than the text.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


def numeric_key(text: str) -> str:
    """Return the sort key of i;ascii-numeric (RFC 4790, section 9.1). Other text is last."""
    match = _DIGITS.match(text)
    digits = match[0].lstrip("0") if match else ""
    return f"{len(digits):09}{digits}" if match else "~"


def satisfies_relation(relation: str, value: str, reference: str, comparator: str) -> bool:
    """True if a value has a relation to another, in the order of a comparator."""
    order = _ORDER_KEYS[comparator]
    order_key, other = order(value), order(reference)
    sign = (order_key > other) - (order_key < other)
    return {
        "gt": sign > 0,
        "ge": sign >= 0,
        "lt": sign < 0,
        "le": sign <= 0,
        "eq": sign == 0,
        "ne": sign != 0,
    }[relation]


_ORDER_KEYS = {OCTET: octet_key, CASEMAP: ascii_casemap_key, NUMERIC: numeric_key}
EQUALITY_KEYS = {
    OCTET: octet_key,
    CASEMAP: ascii_casemap_key,
    PLAIN: casefolded_single_spaced_key,
}  # comparators that test equality


@dataclass(frozen=True, slots=True)
class WildcardPattern:
    """A pattern of :matches. Its cost is at most the text length times `cost_per_character`."""

    segments: tuple["_Segment", ...]  # the parts between the asterisks
    cost_per_character: int

    def match(self, text: str, folded_text: str) -> MatchGroups | None:
        """Return the text and the part of each wildcard, or None.

        An asterisk matches as little as possible. `folded_text` is the key of the text, with the
        same length.
        """
        first, *between = self.segments
        if not first.matches_at(folded_text, 0) or (not between and len(text) != first.length):
            return None
        positions, end = [text, *first.question_mark_texts(text, 0)], first.length
        last = between.pop() if between else None
        for segment in between:
            at = segment.find_in(folded_text, end)
            if at < 0:
                return None
            positions += [text[end:at], *segment.question_mark_texts(text, at)]
            end = at + segment.length
        if last is not None:
            at = len(text) - last.length
            if at < end or not last.matches_at(folded_text, at):
                return None
            positions += [text[end:at], *last.question_mark_texts(text, at)]
        return tuple(positions)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of a pattern without asterisks: literal runs and question marks."""

    runs: tuple[tuple[int, str], ...]  # offset and text
    question_marks: tuple[int, ...]
    length: int

    def matches_at(self, text: str, start: int) -> bool:
        if start + self.length > len(text):
            return False
        return all(text.startswith(run, start + offset) for offset, run in self.runs)

    def find_in(self, text: str, start: int) -> int:
        """Return the first offset from `start` on where the segment matches, else -1."""
        if not self.runs:
            return start if start + self.length <= len(text) else -1
        offset, run = self.runs[0]
        at = text.find(run, start + offset)
        while at >= 0 and not self.matches_at(text, at - offset):
            at = text.find(run, at + 1)
        return at - offset if at >= 0 else -1

    def question_mark_texts(self, text: str, offset: int) -> Iterable[str]:
        return (text[offset + mark_index] for mark_index in self.question_marks)


def parse_wildcards(pattern: str) -> WildcardPattern:
    """Parse a pattern of :matches. A backslash makes the next character literal."""
    parts: list[list[str | None]] = [[]]
    characters = iter(pattern)
    for sign in characters:
        if sign == "*":
            parts.append([])
        elif sign == "?":
            parts[-1].append(None)
        else:
            parts[-1].append(next(characters, sign) if sign == "\\" else sign)
    segments = tuple(_segment_from_characters(part) for part in parts)
    slowest = max((len(segment.runs) for segment in segments if segment.question_marks), default=0)
    return WildcardPattern(segments, 1 + _QUESTION_MARK_COST * slowest)


def _segment_from_characters(characters: Sequence[str | None]) -> _Segment:
    question_marks = tuple(at for at, sign in enumerate(characters) if sign is None)
    runs: list[tuple[int, str]] = []
    start = 0
    for mark_index in (*question_marks, len(characters)):
        if mark_index > start:
            runs.append((start, "".join(sign or "" for sign in characters[start:mark_index])))
        start = mark_index + 1
    return _Segment(tuple(runs), question_marks, len(characters))


def comparison_steps(length: int, cost_per_character: int = 1) -> int:
    """Return the steps that a comparison with a text of this length counts."""
    return 1 + length * cost_per_character // limits.CHARACTERS_PER_STEP
