"""IMAP flags and keywords of a message, as names and as columns."""

from collections.abc import Iterable, Sequence
from itertools import compress, product
from operator import attrgetter, itemgetter
from typing import Any

SYSTEM_FLAGS = ("seen", "answered", "flagged", "deleted", "draft")
_FLAGS_OF_ROW = attrgetter(*SYSTEM_FLAGS, "keywords")
_FLAGS_OF_MAPPING = itemgetter(*SYSTEM_FLAGS, "keywords")
FLAG_NAMES_BY_VALUES = {  # their names in IMAP, by which of them are set
    flag_values: [f"\\{name.capitalize()}" for name in compress(SYSTEM_FLAGS, flag_values)]
    for flag_values in product((False, True), repeat=len(SYSTEM_FLAGS))
}
FORWARDED_KEYWORD = "$forwarded"  # in lower case
MAX_KEYWORDS = 64  # of one message
_COLUMN_BY_FLAG = {"\\seen": "seen", "\\flagged": "flagged", "\\answered": "answered"}


def fold_keyword(keyword: str) -> str:
    """Return the form in which keywords are compared: ASCII letters in lower case.

    Keywords are case-insensitive (RFC 9051, section 2.3.2).
    """
    return keyword.encode().lower().decode()


def unique_keywords(keywords: Iterable[str]) -> list[str]:
    """Return each keyword once, in its first spelling."""
    spelling_by_folded: dict[str, str] = {}
    for keyword in keywords:
        spelling_by_folded.setdefault(fold_keyword(keyword), keyword)
    return list(spelling_by_folded.values())


def is_forwarded(keywords: Iterable[str]) -> bool:
    """True if the keyword $Forwarded is among these, in any case."""
    return FORWARDED_KEYWORD in map(fold_keyword, keywords)


def without_keywords(keywords: Iterable[str], removed: Iterable[str]) -> list[str]:
    """Return the keywords that are not removed, in any case."""
    folded = set(map(fold_keyword, removed))
    return [keyword for keyword in keywords if fold_keyword(keyword) not in folded]


def imap_flags(message_row: Any) -> list[str]:
    """Return the IMAP flags and keywords of a row, or of a mapping by column."""
    return imap_flags_from_values(
        *(_FLAGS_OF_MAPPING if isinstance(message_row, dict) else _FLAGS_OF_ROW)(message_row)
    )


def imap_flags_from_values(*flags_and_keywords: Any) -> list[str]:
    """Return the IMAP names of the set flags in the order of SYSTEM_FLAGS, then the keywords."""
    return [*FLAG_NAMES_BY_VALUES[flags_and_keywords[:-1]], *flags_and_keywords[-1]]


def columns_from_script_flags(flags: Sequence[str]) -> dict[str, Any]:
    r"""Return IMAP flags as message columns.

    `\Draft` and `\Deleted` are ignored: a script can't set them on a received message.
    """
    columns = {
        _COLUMN_BY_FLAG[low]: True for flag in flags if (low := flag.lower()) in _COLUMN_BY_FLAG
    }
    words = [flag for flag in flags if not flag.startswith("\\")]
    return {**columns, "keywords": words[:MAX_KEYWORDS]}
