"""Names that would pass for others: refused where they are to be ours.

After UTS 39: letters of one script, or of Latin beside those that are written with it
(section 5.2, "highly restrictive"); nothing that only looks like a usual letter, such as a
full-width one; and below an ASCII top level no name of Cyrillic or Greek letters all of which
look like Latin ones. Mail from and to such names elsewhere is none of our business.
"""

import unicodedata
from functools import lru_cache

from models.errors import Invalid

# scripts that are written together, by the first word of the names of their letters
TOGETHER = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
_LETTERS = dict(zip("асԁеһіјӏорԛѕԝхуьвαικνορτυγη", "acdehijlopqswxybbaikvoptuyn", strict=True))
# those that only look so when they are large
_CAPITALS = dict(zip("внкмтβεζημνυχ".upper(), "bhkmtbezhmnyx", strict=True))
SEEN_AS_LATIN = frozenset(_LETTERS)


def refuse_address(address: str, *, path: str = "address") -> None:
    """Raise Invalid where what stands left of the @ would pass for another."""
    local, _, domain = address.rpartition("@")
    _refuse(local, domain, path)


def refuse_domain(name: str, *, path: str = "name") -> None:
    """Raise Invalid where the domain would pass for another."""
    _refuse(name, name, path)


def passes_for(name: str, names: tuple[str, ...]) -> bool:
    """Whether the name looks like one of these, and is none of them in any case."""
    return name.casefold() not in _folded(names) and _seen(name) in _looks(names)


def _refuse(name: str, domain: str, path: str) -> None:
    plain = domain.rpartition(".")[2].isascii()
    if any(_deceptive(part, plain=plain) for part in name.split(".")):
        text = "letters that pass for others: write it in one script"
        raise Invalid(text, constraint="lookalike", path=[path])


@lru_cache(1024)
def _deceptive(part: str, *, plain: bool) -> bool:
    """Whether this part of a name would pass for another; `plain` where Latin is around it."""
    if part.isascii():
        return False
    folded = unicodedata.normalize("NFC", part.lower())
    if unicodedata.normalize("NFKC", folded) != folded:
        return True
    letters = [letter for letter in folded if letter.isalpha()]
    scripts = {_script(letter) for letter in letters}
    if len(scripts) > 1 and not any(scripts <= usual for usual in TOGETHER):
        return True
    return plain and bool(letters) and SEEN_AS_LATIN.issuperset(letters)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0].partition("-")[0]


@lru_cache
def _folded(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


@lru_cache
def _looks(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_seen, names))


def _seen(name: str) -> str:
    """What people see of a name: Latin letters for those that look like them, blanks as one."""
    usual = unicodedata.normalize("NFKC", name)
    shown = "".join(sign for sign in usual if unicodedata.category(sign) != "Cf")
    small = "".join(_CAPITALS.get(sign, sign) for sign in shown).lower()
    return " ".join("".join(_LETTERS.get(sign, sign) for sign in small).split())
