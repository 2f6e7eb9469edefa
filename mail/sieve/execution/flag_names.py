"""Flag names in scripts (RFC 5232) and in the database."""

import re
from collections.abc import Iterable

_SYSTEM = ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen")
_SYSTEM_FLAGS = {flag.lower(): flag for flag in _SYSTEM}
_KEYWORD = re.compile(r'[^\x00-\x20(){%*"\\\]\x7f\s]{1,128}')  # the same as in the API


def parse_flags(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the valid flags of texts with flags separated by spaces, without repeats."""
    flags_by_lower_name: dict[str, str] = {}
    for word in (word for text in texts for word in text.split()):
        low = word.lower()
        if low in _SYSTEM_FLAGS or _KEYWORD.fullmatch(word):
            flags_by_lower_name.setdefault(low, word)
    return tuple(flags_by_lower_name.values())


def canonical_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Return the flags in their stored form: system flags in standard spelling."""
    return tuple(_SYSTEM_FLAGS.get(flag.lower(), flag) for flag in flags)
