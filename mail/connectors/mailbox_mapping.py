"""Mapping of remote mailboxes to local paths, without I/O, so that a preview can use it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mail.connectors.remote_server import Listed
from mail.mailboxes import paths
from mail.mailboxes.paths import INBOX, SPECIAL
from mail.mailboxes.special_use_names import NAMES, USES
from mail.sieve.execution.regex_groups import Regex, places
from mail.text import confusables
from mail.text.bounded_regex import TEXT, Expression
from models.errors import Invalid
from models.mailboxes.tables import SpecialUse

LONGEST = 255  # characters of a level of a new path
ROLES = {  # RFC 6154
    "\\archive": SpecialUse.ARCHIVE,
    "\\drafts": SpecialUse.DRAFTS,
    "\\junk": SpecialUse.JUNK,
    "\\sent": SpecialUse.SENT,
    "\\trash": SpecialUse.TRASH,
}
VIRTUAL = frozenset({"\\all", "\\flagged"})  # their messages are also in other mailboxes
CALLED = {  # by the names that mail programs use, in lower case
    "archive": SpecialUse.ARCHIVE, "archives": SpecialUse.ARCHIVE,
    "sent items": SpecialUse.SENT, "sent messages": SpecialUse.SENT, "sent mail": SpecialUse.SENT,
    "deleted items": SpecialUse.TRASH, "deleted messages": SpecialUse.TRASH,
    "bin": SpecialUse.TRASH, "draft": SpecialUse.DRAFTS,
    "spam": SpecialUse.JUNK, "junk e-mail": SpecialUse.JUNK, "junk email": SpecialUse.JUNK,
    "bulk mail": SpecialUse.JUNK,
}  # fmt: skip
for _names in NAMES.values():
    CALLED |= {name.lower(): use for name, use in zip(_names, USES, strict=True)}


@dataclass(frozen=True, slots=True)
class Mapped:
    """A remote mailbox and the local path for its messages."""

    listed: Listed
    path: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that select remote mailboxes and map them to local paths."""

    exclude: Expression | None = None
    include: Expression | None = None
    masks_in: Sequence[str] = ()  # of whole paths, ignoring case; * is any text, ? one character
    masks_out: Sequence[str] = ()
    rewrites: Sequence[tuple[Regex, str]] = ()  # $1 to $9 are groups, $$ is a dollar sign
    roles: bool = True  # map a mailbox with a special use to the local one with it
    below: str | None = None  # the local mailbox that contains all of them


def mapped(listed: Sequence[Listed], how: Rules, here: Mapping[SpecialUse, str]) -> list[Mapped]:
    """Select the remote mailboxes to fetch, INBOX first, and map them to local paths.

    Several remote mailboxes can map to one path.
    """
    found = [
        Mapped(each, _path(each, how, here))
        for each in listed
        if each.levels and _wanted(each, how)
    ]
    return sorted(found, key=lambda one: remote(one.listed).lower() != "inbox")


def remote(listed: Listed) -> str:
    """The path of a remote mailbox as people read it."""
    return "/".join(listed.levels)


def _wanted(listed: Listed, how: Rules) -> bool:
    name = remote(listed)
    if (listed.use or "") in VIRTUAL:
        return False
    if how.include and not how.include.found_in(name):
        return False
    if how.masks_in and not _fits(how.masks_in, name):
        return False
    return not ((how.exclude and how.exclude.found_in(name)) or _fits(how.masks_out, name))


def _fits(masks: Sequence[str], name: str) -> bool:
    spelled = unicodedata.normalize("NFC", name)
    return any(_mask(unicodedata.normalize("NFC", mask)).fullmatch(spelled) for mask in masks)


@lru_cache(256)
def _mask(mask: str) -> re.Pattern[str]:
    """Compile a mask for whole paths.

    Atomic groups prevent backtracking: if the first match of a part fits, a later one fits no
    better, so no mask takes long.
    """
    first, *others = (
        "".join("." if sign == "?" else re.escape(sign) for sign in part)
        for part in re.split(r"\*+", mask)
    )
    between = "".join(f"(?>.*?{part})" for part in others[:-1])
    last = f".*{others[-1]}" if others else ""
    return re.compile(f"{first}{between}{last}", re.DOTALL | re.IGNORECASE)


def _path(listed: Listed, how: Rules, here: Mapping[SpecialUse, str]) -> str:
    levels = list(listed.levels)
    if levels[0].lower() == "inbox":
        levels[0] = INBOX
    use = ROLES.get(listed.use or "") or (
        CALLED.get(_level(levels[-1]).lower()) if len(levels) - (levels[0] == INBOX) == 1 else None
    )
    if how.roles and how.below is None and use is not None and use in here:
        return here[use]
    name = "/".join(_level(level) for level in levels)
    for pattern, replacement in how.rewrites:
        name = _rewritten(name, pattern, replacement)
    return _fitting(name, how.below)


def _rewritten(name: str, pattern: Regex, replacement: str) -> str:
    """The path with the first match replaced; unchanged if it is too long."""
    at = places(pattern, name, lambda _: None) if len(name) <= TEXT else None
    if at is None:
        return name

    def meant(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        begin, end = at[2 * int(found[1]) :][:2] or (-1, -1)
        return name[begin:end] if end >= 0 else ""

    return name[: at[0]] + re.sub(r"\$([$1-9])", meant, replacement) + name[at[1] :]


def _level(level: str) -> str:
    """A level in a form that is valid here."""
    clean = unicodedata.normalize("NFC", level).replace("/", "_")
    signs = (" " if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign
             for sign in clean)  # fmt: skip
    text = "".join(signs)[: 4 * LONGEST].split()
    short = " ".join(text)[:LONGEST].strip() or "_"
    return f"{short} (2)" if confusables.passes_for(short, SPECIAL) else short


def _fitting(name: str, below: str | None) -> str:
    """A valid local path; levels that are too deep are cut off."""
    levels = [_level(level) for level in name.split("/") if level.strip()]
    above = below.split("/") if below else []
    try:
        return paths.checked_path("/".join([*above, *levels][: paths.LEVELS]))
    except Invalid:  # no valid level remains
        return below or INBOX
