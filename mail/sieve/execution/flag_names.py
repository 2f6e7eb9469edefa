"""Which flags there are, and how they are written."""

import re
from collections.abc import Iterable

_SYSTEM = ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen")
_SPELLED = {flag.lower(): flag for flag in _SYSTEM}
_KEYWORD = re.compile(r'[^\x00-\x20(){%*"\\\]\x7f\s]{1,128}')  # what the API takes, too


def known(texts: Iterable[str]) -> tuple[str, ...]:
    """The flags that stand in texts, with blanks between, each once; what can be none goes."""
    found: dict[str, str] = {}
    for word in (word for text in texts for word in text.split()):
        low = word.lower()
        if low in _SPELLED or _KEYWORD.fullmatch(word):
            found.setdefault(low, word)
    return tuple(found.values())


def spelled(flags: Iterable[str]) -> tuple[str, ...]:
    """The flags as they are stored: those of IMAP itself have one spelling."""
    return tuple(_SPELLED.get(flag.lower(), flag) for flag in flags)
