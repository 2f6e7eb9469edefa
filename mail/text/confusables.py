"""Refusal of names that look like other names, for addresses, domains and mailboxes here.

After UTS 39, section 5.2 ("highly restrictive"): letters of one script, or of Latin and the scripts
written with it; no compatibility characters, such as full-width letters. Below an ASCII top-level
domain no Cyrillic or Greek name with only letters that look like Latin ones. Mail from and to such
names on other servers is allowed.
"""

import unicodedata
from functools import lru_cache

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

# scripts that are written together, by the first word of their letters' Unicode names
COMBINED_SCRIPTS = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)
_LATIN_LOOKALIKES = dict(
    zip("асԁеһіјӏорԛѕԝхуьвαικνορτυγη", "acdehijlopqswxybbaikvoptuyn", strict=True)
)
# letters that look Latin only as capitals
_CAPITAL_LOOKALIKES = dict(zip("внкмтβεζημνυχ".upper(), "bhkmtbezhmnyx", strict=True))
LATIN_LOOKALIKES = frozenset(_LATIN_LOOKALIKES)


def refuse_confusable_address(address: str, *, path: str = "address") -> None:
    """Raise InvalidInput if the local part of an address can be confused with another."""
    local, _, domain = address.rpartition("@")
    _refuse_confusable(local, domain, path)


def refuse_confusable_domain(name: str, *, path: str = "name") -> None:
    """Raise InvalidInput if a domain name can be confused with another."""
    _refuse_confusable(name, name, path)


def is_confusable_with(name: str, names: tuple[str, ...]) -> bool:
    """True if the name looks like one of the names but equals none, ignoring case."""
    return name.casefold() not in _folded_names(names) and _appearance(name) in _appearances(names)


def _refuse_confusable(name: str, domain: str, path: str) -> None:
    """Raise InvalidInput if a part of the name mixes scripts with letters that look alike."""
    has_ascii_tld = domain.rpartition(".")[2].isascii()
    if any(_is_confusable_part(part, latin_context=has_ascii_tld) for part in name.split(".")):
        text = "The text mixes letters of several scripts that look alike: use one script."
        raise InvalidInput(text, constraint=ValidationConstraint.LOOKALIKE, path=[path])


@lru_cache(1024)
def _is_confusable_part(part: str, *, latin_context: bool) -> bool:
    """True if a part of a name is confusable. `latin_context`: the top-level domain is ASCII."""
    if part.isascii():
        return False
    folded = unicodedata.normalize("NFC", part.lower())
    if unicodedata.normalize("NFKC", folded) != folded:
        return True
    folded_letters = [character for character in folded if character.isalpha()]
    scripts = {_script_name(character) for character in folded_letters}
    if len(scripts) > 1 and not any(
        scripts <= common_scripts for common_scripts in COMBINED_SCRIPTS
    ):
        return True
    return latin_context and bool(folded_letters) and LATIN_LOOKALIKES.issuperset(folded_letters)


def _script_name(character: str) -> str:
    return unicodedata.name(character, "?").partition(" ")[0].partition("-")[0]


@lru_cache
def _folded_names(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


@lru_cache
def _appearances(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_appearance, names))


def _appearance(name: str) -> str:
    """Return a name as people see it: Latin letters for lookalikes, single spaces."""
    normalized_name = unicodedata.normalize("NFKC", name)
    visible_text = "".join(sign for sign in normalized_name if unicodedata.category(sign) != "Cf")
    small = "".join(_CAPITAL_LOOKALIKES.get(sign, sign) for sign in visible_text).lower()
    return " ".join("".join(_LATIN_LOOKALIKES.get(sign, sign) for sign in small).split())
