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
    """Return the IMAP flags and keywords of a row, or of a mapping by column."""
    return named_flags(*(_BY_NAME if isinstance(row, dict) else _OF_ROW)(row))


def named_flags(*marks: Any) -> list[str]:
    """Return the IMAP names of the set flags in the order of SYSTEM_FLAGS, then the keywords."""
    return [*FLAGS_OF[marks[:-1]], *marks[-1]]


def flags_of(flags: Sequence[str]) -> dict[str, Any]:
    r"""Return IMAP flags as message columns.

    `\Draft` and `\Deleted` are ignored: a script can't set them on a received message.
    """
    found = {_FLAGS[low]: True for flag in flags if (low := flag.lower()) in _FLAGS}
    words = [flag for flag in flags if not flag.startswith("\\")]
    return {**found, "keywords": words[:KEYWORDS]}
