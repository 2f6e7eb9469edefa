"""IMAP flags and keywords of a message, as names and as columns."""

from collections.abc import Sequence
from itertools import compress, product
from operator import attrgetter, itemgetter
from typing import Any

SYSTEM_FLAGS = ("seen", "answered", "flagged", "deleted", "draft")
_OF_ROW = attrgetter(*SYSTEM_FLAGS, "keywords")
_BY_NAME = itemgetter(*SYSTEM_FLAGS, "keywords")
FLAGS_OF = {  # their names in IMAP, by which of them are set
    marks: [f"\\{name.capitalize()}" for name in compress(SYSTEM_FLAGS, marks)]
    for marks in product((False, True), repeat=len(SYSTEM_FLAGS))
}
KEYWORDS = 64  # of one message
_FLAGS = {"\\seen": "seen", "\\flagged": "flagged", "\\answered": "answered"}


def flags(row: Any) -> list[str]:
    """The flags and keywords of a row or of its columns by name, as IMAP names them."""
    return named_flags(*(_BY_NAME if isinstance(row, dict) else _OF_ROW)(row))


def named_flags(*marks: Any) -> list[str]:
    """The flags that are set of SYSTEM_FLAGS, in their order, and the keywords behind them."""
    return [*FLAGS_OF[marks[:-1]], *marks[-1]]


def flags_of(flags: Sequence[str]) -> dict[str, Any]:
    r"""Flags as a place has them: no message that came is a draft, or deleted, by a script."""
    found = {_FLAGS[low]: True for flag in flags if (low := flag.lower()) in _FLAGS}
    words = [flag for flag in flags if not flag.startswith("\\")]
    return {**found, "keywords": words[:KEYWORDS]}
