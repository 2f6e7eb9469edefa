"""Where the mail of each folder elsewhere goes here: pure, so that it can be shown beforehand."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mail import lookalikes, paths
from mail.connectors.servers import Listed
from mail.expressions import Expression
from mail.paths import INBOX, SPECIAL
from mail.specialnames import NAMES, USES
from models.errors import Invalid
from models.mailboxes import SpecialUse

LONGEST = 255  # characters of a level that is made
ROLES = {  # of RFC 6154
    "\\archive": SpecialUse.ARCHIVE,
    "\\drafts": SpecialUse.DRAFTS,
    "\\junk": SpecialUse.JUNK,
    "\\sent": SpecialUse.SENT,
    "\\trash": SpecialUse.TRASH,
}
VIRTUAL = frozenset({"\\all", "\\flagged"})  # what is in them is in others, too
CALLED = {  # by what programs call such folders, in lower case
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
    """A folder elsewhere, and the path of that here where its mail goes."""

    listed: Listed
    path: str


@dataclass(frozen=True, slots=True)
class Mapping_:
    """How folders are mapped."""

    exclude: Expression | None = None
    include: Expression | None = None
    rewrites: Sequence[tuple[Expression, str]] = ()
    roles: bool = True  # a folder with a role goes to that with the role here
    below: str | None = None  # the folder here in which all of them are made


def mapped(
    listed: Sequence[Listed], how: Mapping_, here: Mapping[SpecialUse, str]
) -> list[Mapped]:
    """Which folders are fetched, INBOX first, and where to; `here` has those with a role here.

    Two may go to one.
    """
    found = [
        Mapped(each, _path(each, how, here)) for each in listed if each.levels and _wanted(each, how)
    ]
    return sorted(found, key=lambda one: remote(one.listed).upper() != INBOX)


def remote(listed: Listed) -> str:
    """The path of a folder elsewhere, as people read it."""
    return "/".join(listed.levels)


def _wanted(listed: Listed, how: Mapping_) -> bool:
    name = remote(listed)
    if (listed.use or "") in VIRTUAL:
        return False
    if how.include and not how.include.found_in(name):
        return False
    return not (how.exclude and how.exclude.found_in(name))


def _path(listed: Listed, how: Mapping_, here: Mapping[SpecialUse, str]) -> str:
    levels = list(listed.levels)
    if levels[0].upper() == INBOX:
        levels[0] = INBOX
    use = ROLES.get(listed.use or "") or (
        CALLED.get(levels[-1].lower()) if len(levels) - (levels[0] == INBOX) == 1 else None
    )
    if how.roles and use in here and how.below is None:
        return here[use]
    name = "/".join(_level(level) for level in levels)
    for pattern, replacement in how.rewrites:
        name = pattern.replaced(name, replacement)
    if how.below is not None:
        name = f"{how.below}/{name}"
    return _fitting(name)


def _level(level: str) -> str:
    """A level as it may be here."""
    clean = unicodedata.normalize("NFC", level).replace("/", "_")
    signs = (" " if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign
             for sign in clean)  # fmt: skip
    text = " ".join("".join(signs).split())[:LONGEST] or "_"
    return f"{text} (2)" if lookalikes.passes_for(text, SPECIAL) else text


def _fitting(name: str) -> str:
    """The path in our spelling; where no folder can have it, INBOX."""
    try:
        return paths.checked_path("/".join(level for level in name.split("/") if level.strip()))
    except Invalid:
        return INBOX
