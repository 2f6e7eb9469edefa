"""Mailbox paths: canonical form, limits, modified UTF-7 of IMAP, and patterns."""

import re
import unicodedata
from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from mail.mailboxes.special_use_names import NAMES_BY_LANGUAGE
from mail.text import confusables
from models.errors import InvalidInput
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint

INBOX = "INBOX"
MAX_LEVELS = 128
MAX_LEVEL_LENGTH = 512  # characters of a level
MAX_PATTERNS = 20  # of one list
MAX_PATTERN_LENGTH = 1000  # characters
PATTERN_CACHE_SIZE = 500  # compiled patterns that a process caches

SPECIAL_USE_NAMES = (
    INBOX,
    "Archive",
    *dict.fromkeys(name for names in NAMES_BY_LANGUAGE.values() for name in names),
)
# controls, surrogates, and line and paragraph separators
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def validate_path(
    path: str, *, input_path: Sequence[str] = ("path",), index: int | None = None
) -> str:
    """Return the canonical form of a path.

    Raises InvalidInput if the path is invalid, or has a level that can be confused with the name
    of a special-use mailbox.
    """
    clean = canonical_path(path)
    levels = clean.split("/")
    problem = None
    if len(levels) > MAX_LEVELS or any(len(level) > MAX_LEVEL_LENGTH for level in levels):
        problem = f"A path has at most {MAX_LEVELS} levels of {MAX_LEVEL_LENGTH} characters."
    elif not all(level.strip() for level in levels):
        problem = "A path must not contain empty levels."
    elif not _REFUSED_CATEGORIES.isdisjoint(map(unicodedata.category, clean)):
        problem = "A path must not contain control characters."
    if problem:
        raise InvalidInput(
            problem, constraint=ValidationConstraint.PATTERN, path=input_path, index=index
        )
    if any(confusables.is_confusable_with(level, SPECIAL_USE_NAMES) for level in levels):
        text = "The name looks like the name of another mailbox."
        raise InvalidInput(
            text, constraint=ValidationConstraint.LOOKALIKE, path=input_path, index=index
        )
    return clean


def canonical_path(path: str) -> str:
    """Return a path without outer slashes, in NFC, with INBOX in capitals.

    The result may still be an invalid path.
    """
    clean = unicodedata.normalize("NFC", path).removeprefix("/").removesuffix("/")
    first, slash, rest = clean.partition("/")
    return f"{INBOX}{slash}{rest}" if first.lower() == "inbox" else clean


def missing_paths_with_parents(paths: Iterable[str], existing: Collection[str] = ()) -> list[str]:
    """Return the paths and their parents without repeats, except existing ones."""
    missing_paths: dict[str, None] = {}
    for path in paths:
        levels = path.split("/")
        missing_paths |= dict.fromkeys(
            "/".join(levels[:depth]) for depth in range(1, len(levels) + 1)
        )
    return [path for path in missing_paths if path not in existing]


@lru_cache(4096)
def tree_sort_key(path: str) -> tuple[bool, list[str]]:
    """Return the sort key of the mailbox tree: INBOX and its children first, then by level."""
    levels = path.split("/")
    return levels[0] != INBOX, levels


def modified_utf7(path: str) -> str:
    """Return a path in modified UTF-7 of IMAP4rev1 (RFC 3501, section 5.1.3)."""
    return re.sub(r"&|[^ -~]+", _encode_run, path)


def _encode_run(match: re.Match[str]) -> str:
    """Return a run of characters in modified UTF-7 (RFC 3501, section 5.1.3)."""
    if match[0] == "&":
        return "&-"
    packed = b64encode(match[0].encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
    return f"&{packed}-"


@lru_cache(maxsize=PATTERN_CACHE_SIZE)
def compile_folded_path_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern for whole, folded paths.

    The pattern has at most MAX_PATTERN_LENGTH characters.
    """
    return re.compile(_pattern_regex(fold_text(pattern)), re.DOTALL)


def patterns_regex_with_atomic_groups(
    patterns: Sequence[str], *, input_path: Sequence[str] = ("patterns",)
) -> str:
    """Return a regular expression for whole paths that match a pattern.

    * matches anything, % within one level. If a part matches at its first position, a later
    position is no better. So nothing is tried twice, and no pattern takes long. PostgreSQL never
    backtracks and has no `(?>`: use `(?:` there. Raises InvalidInput if there are too many patterns
    or one is too long.
    """
    if len(patterns) > MAX_PATTERNS:
        raise InvalidInput(
            f"At most {MAX_PATTERNS} patterns are allowed.",
            constraint=ValidationConstraint.MAX,
            path=input_path,
        )
    for index, pattern in enumerate(patterns):
        if len(pattern) > MAX_PATTERN_LENGTH:
            text = f"A pattern has at most {MAX_PATTERN_LENGTH} characters."
            raise InvalidInput(
                text, constraint=ValidationConstraint.MAX, path=input_path, index=index
            )
    return rf"\A(?:{'|'.join(_pattern_regex(canonical_path(pattern)) for pattern in patterns)})\Z"


def _pattern_regex(pattern: str) -> str:
    first, *others = re.split(r"[*%]*\*[*%]*", pattern)
    if not others:
        return _pattern_without_stars(first)
    *between, last = others
    middle_pattern = "".join(
        rf"(?>(?:[^/]*/)*?{_pattern_without_stars('%' + part)})" for part in between
    )
    last_pattern = _pattern_without_stars("%" + last)
    return rf"(?>{_pattern_without_stars(first)}){middle_pattern}(?:.*/)?{last_pattern}"


def _pattern_without_stars(part: str) -> str:
    first, *others = map(re.escape, re.split("%+", part))
    if not others:
        return first
    *between, last = others
    return first + "".join(f"(?>[^/]*?{part})" for part in between) + f"[^/]*?{last}"
