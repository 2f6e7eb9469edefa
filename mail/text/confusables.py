"""Refusal of names that look like other names, for addresses, domains and mailboxes here.

After UTS 39, section 5.2 ("highly restrictive"): letters of one script, or of Latin and the scripts
written with it; no compatibility characters, such as full-width letters. Below an ASCII top-level
domain no Cyrillic or Greek name with only letters that look like Latin ones. Mail from and to such
names on other servers is allowed.
"""

import unicodedata
from functools import lru_cache

from models.errors import Invalid

# scripts that are written together, by the first word of their letters' Unicode names
TOGETHER = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
_LETTERS = dict(zip("асԁеһіјӏорԛѕԝхуьвαικνορτυγη", "acdehijlopqswxybbaikvoptuyn", strict=True))
# letters that look Latin only as capitals
_CAPITALS = dict(zip("внкмтβεζημνυχ".upper(), "bhkmtbezhmnyx", strict=True))
SEEN_AS_LATIN = frozenset(_LETTERS)


def refuse_address(address: str, *, path: str = "address") -> None:
    """Raise Invalid if the local part of an address can be confused with another."""
    local, _, domain = address.rpartition("@")
    _refuse(local, domain, path)


def refuse_domain(name: str, *, path: str = "name") -> None:
    """Raise Invalid if a domain name can be confused with another."""
    _refuse(name, name, path)


def passes_for(name: str, names: tuple[str, ...]) -> bool:
    """True if the name looks like one of the names but equals none, ignoring case."""
    return name.casefold() not in _folded(names) and _seen(name) in _looks(names)


def _refuse(name: str, domain: str, path: str) -> None:
    plain = domain.rpartition(".")[2].isascii()
    if any(_deceptive(part, plain=plain) for part in name.split(".")):
        text = "letters that pass for others: write it in one script"
        raise Invalid(text, constraint="lookalike", path=[path])


@lru_cache(1024)
def _deceptive(part: str, *, plain: bool) -> bool:
    """True if a part of a name is confusable. `latin_context`: the top-level domain is ASCII."""
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
    """Return a name as people see it: Latin letters for lookalikes, single spaces."""
    usual = unicodedata.normalize("NFKC", name)
    shown = "".join(sign for sign in usual if unicodedata.category(sign) != "Cf")
    small = "".join(_CAPITALS.get(sign, sign) for sign in shown).lower()
    return " ".join("".join(_LETTERS.get(sign, sign) for sign in small).split())
