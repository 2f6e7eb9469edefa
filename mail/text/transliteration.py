"""Transliteration of names to ASCII letters, digits and hyphens."""

import re
import unicodedata

# Letters without a Unicode decomposition to ASCII: Latin, Greek and Cyrillic.
_LETTERS_AND_TEXTS = (
    "ß:ss æ:ae œ:oe ø:o đ:d ð:d ł:l þ:th ı:i ħ:h ŋ:n "  # noqa: RUF001
    "α:a β:v γ:g δ:d ε:e ζ:z η:i θ:th ι:i κ:k λ:l μ:m ν:n ξ:x ο:o π:p ρ:r σ:s ς:s τ:t υ:y φ:f "  # noqa: RUF001
    "χ:ch ψ:ps ω:o "
    "а:a б:b в:v г:g д:d е:e ж:zh з:z и:i к:k л:l м:m н:n о:o п:p р:r с:s т:t у:u ф:f х:kh ц:ts "  # noqa: RUF001
    "ч:ch ш:sh щ:shch ъ: ы:y ь: э:e ю:yu я:ya і:i є:ye ґ:g"  # noqa: RUF001
)
_LETTERS = {
    character: text
    for character, _, text in (pair.partition(":") for pair in _LETTERS_AND_TEXTS.split(" "))
}
_OTHER_CHARACTERS = re.compile(r"[^a-z0-9]+")


def ascii_slug_or_empty(text: str, *, max_length: int) -> str:
    """Return a text in lower-case ASCII letters and digits, with hyphens between words.

    Accents are dropped. Returns "" if the text has no letter or digit with an ASCII form.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    letters = (_LETTERS.get(character, character) for character in decomposed)
    plain = "".join(
        character for character in "".join(letters) if not unicodedata.combining(character)
    )
    return _OTHER_CHARACTERS.sub("-", plain).strip("-")[:max_length].strip("-")
