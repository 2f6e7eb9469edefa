"""Mailbox paths: canonical form, limits, modified UTF-7 of IMAP, and masks."""

import re
import unicodedata
from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from mail.mailboxes.special_use_names import NAMES
from mail.text import confusables
from models.errors import Invalid
from models.store.text_folding import fold_text

INBOX = "INBOX"
LEVELS = 128
LONGEST = 512  # characters of a level
MASKS = 20  # of one list
LONGEST_MASK = 1000  # characters
COMPILED = 500  # compiled masks that a process caches

SPECIAL = (INBOX, "Archive", *dict.fromkeys(name for names in NAMES.values() for name in names))
# controls, surrogates, and line and paragraph separators
_ODD = frozenset({"Cc", "Cs", "Zl", "Zp"})


def checked_path(path: str, *, path_in: Sequence[str] = ("path",), index: int | None = None) -> str:
    """Return the canonical form of a path.

    Raises Invalid if the path is invalid, or has a level that can be confused with the name of a
    special-use mailbox.
    """
    clean = spelled(path)
    levels = clean.split("/")
    problem = None
    if len(levels) > LEVELS or any(len(level) > LONGEST for level in levels):
        problem = f"a path has at most {LEVELS} levels of {LONGEST} characters"
    elif not all(level.strip() for level in levels):
        problem = "a path has no empty levels"
    elif not _ODD.isdisjoint(map(unicodedata.category, clean)):
        problem = "a path has no control characters"
    if problem:
        raise Invalid(problem, constraint="pattern", path=path_in, index=index)
    if any(confusables.passes_for(level, SPECIAL) for level in levels):
        text = "a name that passes for that of another folder"
        raise Invalid(text, constraint="lookalike", path=path_in, index=index)
    return clean


def spelled(path: str) -> str:
    """Return a path without outer slashes, in NFC, with INBOX in capitals.

    The result may still be an invalid path.
    """
    clean = unicodedata.normalize("NFC", path).removeprefix("/").removesuffix("/")
    first, slash, rest = clean.partition("/")
    return f"{INBOX}{slash}{rest}" if first.lower() == "inbox" else clean


def with_parents(paths: Iterable[str], there: Collection[str] = ()) -> list[str]:
    """Return the paths and their parents without repeats, except existing ones."""
    found: dict[str, None] = {}
    for path in paths:
        levels = path.split("/")
        found |= dict.fromkeys("/".join(levels[:depth]) for depth in range(1, len(levels) + 1))
    return [path for path in found if path not in there]


@lru_cache(4096)
def in_tree(path: str) -> tuple[bool, list[str]]:
    """Return the sort key of the mailbox tree: INBOX and its children first, then by level."""
    levels = path.split("/")
    return levels[0] != INBOX, levels


def utf7(path: str) -> str:
    """Return a path in modified UTF-7 of IMAP4rev1 (RFC 3501, section 5.1.3)."""
    return re.sub(r"&|[^ -~]+", _shifted, path)


def _shifted(found: re.Match[str]) -> str:
    if found[0] == "&":
        return "&-"
    packed = b64encode(found[0].encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
    return f"&{packed}-"


@lru_cache(maxsize=COMPILED)
def compiled(mask: str) -> re.Pattern[str]:
    """Return the pattern of a mask for whole, folded paths.

    The mask has at most MAX_MASK_LENGTH characters.
    """
    return re.compile(_mask(fold_text(mask)), re.DOTALL)


def pattern(masks: Sequence[str]) -> str:
    """Return a regular expression for whole paths that match a mask.

    * matches anything, % within one level. If a part matches at its first position, a later
    position is no better. So nothing is tried twice, and no mask takes long. PostgreSQL never
    backtracks and has no `(?>`: use `(?:` there. Raises Invalid if there are too many masks or one
    is too long.
    """
    if len(masks) > MASKS:
        raise Invalid(f"at most {MASKS} masks", constraint="max", path=["masks"])
    for index, mask in enumerate(masks):
        if len(mask) > LONGEST_MASK:
            text = f"a mask has at most {LONGEST_MASK} characters"
            raise Invalid(text, constraint="max", path=["masks"], index=index)
    return rf"\A(?:{'|'.join(_mask(spelled(mask)) for mask in masks)})\Z"


def _mask(mask: str) -> str:
    first, *others = re.split(r"[*%]*\*[*%]*", mask)
    if not others:
        return _levels(first)
    *between, last = others
    found = "".join(rf"(?>(?:[^/]*/)*?{_levels('%' + part)})" for part in between)
    return rf"(?>{_levels(first)}){found}(?:.*/)?{_levels('%' + last)}"


def _levels(part: str) -> str:
    first, *others = map(re.escape, re.split("%+", part))
    if not others:
        return first
    *between, last = others
    return first + "".join(f"(?>[^/]*?{one})" for one in between) + f"[^/]*?{last}"
