"""Mapping of remote mailboxes to local paths, without I/O, so that a preview can use it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mail.connectors.remote_server import ListedMailbox
from mail.mailboxes import paths
from mail.mailboxes.paths import INBOX, SPECIAL_USE_NAMES
from mail.mailboxes.special_use_names import NAMED_USES, NAMES_BY_LANGUAGE
from mail.sieve.execution.regex_groups import GroupRegex, match_group_offsets_or_none
from mail.text import confusables
from mail.text.bounded_regex import MAX_TEXT_LENGTH, BoundedRegex
from models.errors import InvalidInput
from models.mailboxes.tables import SpecialUse

MAX_LEVEL_LENGTH = 255  # characters of a level of a new path
SPECIAL_USE_BY_FLAG = {  # RFC 6154
    "\\archive": SpecialUse.ARCHIVE,
    "\\drafts": SpecialUse.DRAFTS,
    "\\junk": SpecialUse.JUNK,
    "\\sent": SpecialUse.SENT,
    "\\trash": SpecialUse.TRASH,
}
VIRTUAL_FLAGS = frozenset({"\\all", "\\flagged"})  # their messages are also in other mailboxes
SPECIAL_USE_BY_NAME = {  # by the names that mail programs use, in lower case
    "archive": SpecialUse.ARCHIVE, "archives": SpecialUse.ARCHIVE,
    "sent items": SpecialUse.SENT, "sent messages": SpecialUse.SENT, "sent mail": SpecialUse.SENT,
    "deleted items": SpecialUse.TRASH, "deleted messages": SpecialUse.TRASH,
    "bin": SpecialUse.TRASH, "draft": SpecialUse.DRAFTS,
    "spam": SpecialUse.JUNK, "junk e-mail": SpecialUse.JUNK, "junk email": SpecialUse.JUNK,
    "bulk mail": SpecialUse.JUNK,
}  # fmt: skip
for _names in NAMES_BY_LANGUAGE.values():
    SPECIAL_USE_BY_NAME |= {name.lower(): use for name, use in zip(_names, NAMED_USES, strict=True)}


@dataclass(frozen=True, slots=True)
class MailboxMapping:
    """A remote mailbox and the local path for its messages."""

    remote_mailbox: ListedMailbox
    local_path: str


@dataclass(frozen=True, slots=True)
class MappingRules:
    """The rules that select remote mailboxes and map them to local paths."""

    exclude: BoundedRegex | None = None
    include: BoundedRegex | None = None
    include_patterns: Sequence[
        str
    ] = ()  # of whole paths, ignoring case; * is any text, ? one character
    exclude_patterns: Sequence[str] = ()
    rewrites: Sequence[tuple[GroupRegex, str]] = ()  # $1 to $9 are groups, $$ is a dollar sign
    maps_special_use: bool = True  # map a mailbox with a special use to the local one with it
    parent_path: str | None = None  # the local mailbox that contains all of them


def select_and_map_mailboxes(
    remote_mailboxes: Sequence[ListedMailbox],
    rules: MappingRules,
    local_special_use_paths: Mapping[SpecialUse, str],
) -> list[MailboxMapping]:
    """Select the remote mailboxes to fetch, INBOX first, and map them to local paths.

    Several remote mailboxes can map to one path.
    """
    mappings = [
        MailboxMapping(mailbox, _local_path(mailbox, rules, local_special_use_paths))
        for mailbox in remote_mailboxes
        if mailbox.levels and _is_selected(mailbox, rules)
    ]
    return sorted(
        mappings, key=lambda mapping: remote_path(mapping.remote_mailbox).lower() != "inbox"
    )


def remote_path(remote_mailbox: ListedMailbox) -> str:
    """The path of a remote mailbox as people read it."""
    return "/".join(remote_mailbox.levels)


def _is_selected(remote_mailbox: ListedMailbox, rules: MappingRules) -> bool:
    name = remote_path(remote_mailbox)
    if (remote_mailbox.special_use or "") in VIRTUAL_FLAGS:
        return False
    if rules.include and not rules.include.is_found_in(name):
        return False
    if rules.include_patterns and not _matches_any_pattern(rules.include_patterns, name):
        return False
    return not (
        (rules.exclude and rules.exclude.is_found_in(name))
        or _matches_any_pattern(rules.exclude_patterns, name)
    )


def _matches_any_pattern(patterns: Sequence[str], path: str) -> bool:
    spelled = unicodedata.normalize("NFC", path)
    return any(
        _compile_pattern(unicodedata.normalize("NFC", pattern)).fullmatch(spelled)
        for pattern in patterns
    )


@lru_cache(256)
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern for whole paths.

    Atomic groups prevent backtracking: if the first match of a part fits, a later one fits no
    better, so no pattern takes long.
    """
    first, *others = (
        "".join("." if sign == "?" else re.escape(sign) for sign in part)
        for part in re.split(r"\*+", pattern)
    )
    between = "".join(f"(?>.*?{part})" for part in others[:-1])
    last = f".*{others[-1]}" if others else ""
    return re.compile(f"{first}{between}{last}", re.DOTALL | re.IGNORECASE)


def _local_path(
    remote_mailbox: ListedMailbox,
    rules: MappingRules,
    local_special_use_paths: Mapping[SpecialUse, str],
) -> str:
    levels = list(remote_mailbox.levels)
    if levels[0].lower() == "inbox":
        levels[0] = INBOX
    use = SPECIAL_USE_BY_FLAG.get(remote_mailbox.special_use or "") or (
        SPECIAL_USE_BY_NAME.get(_clean_level(levels[-1]).lower())
        if len(levels) - (levels[0] == INBOX) == 1
        else None
    )
    if (
        rules.maps_special_use
        and rules.parent_path is None
        and use is not None
        and use in local_special_use_paths
    ):
        return local_special_use_paths[use]
    name = "/".join(_clean_level(level) for level in levels)
    for pattern, replacement in rules.rewrites:
        name = _replace_first_match(name, pattern, replacement)
    return _valid_path_or_parent_or_inbox(name, rules.parent_path)


def _replace_first_match(path: str, pattern: GroupRegex, replacement: str) -> str:
    """The path with the first match replaced; unchanged if it is too long."""
    at = (
        match_group_offsets_or_none(pattern, path, lambda _: None)
        if len(path) <= MAX_TEXT_LENGTH
        else None
    )
    if at is None:
        return path

    def group_value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        begin, end = at[2 * int(match[1]) :][:2] or (-1, -1)
        return path[begin:end] if end >= 0 else ""

    return path[: at[0]] + re.sub(r"\$([$1-9])", group_value, replacement) + path[at[1] :]


def _clean_level(level: str) -> str:
    """Return a level of a remote mailbox name in a form that is valid in a local path."""
    clean = unicodedata.normalize("NFC", level).replace("/", "_")
    characters = (" " if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign
             for sign in clean)  # fmt: skip
    text = "".join(characters)[: 4 * MAX_LEVEL_LENGTH].split()
    short = " ".join(text)[:MAX_LEVEL_LENGTH].strip() or "_"
    return f"{short} (2)" if confusables.is_confusable_with(short, SPECIAL_USE_NAMES) else short


def _valid_path_or_parent_or_inbox(path: str, parent_path: str | None) -> str:
    """A valid local path; levels that are too deep are cut off."""
    levels = [_clean_level(level) for level in path.split("/") if level.strip()]
    above = parent_path.split("/") if parent_path else []
    try:
        return paths.validate_path("/".join([*above, *levels][: paths.MAX_LEVELS]))
    except InvalidInput:  # no valid level remains
        return parent_path or INBOX
