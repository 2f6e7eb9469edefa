"""The first words of a message, for lists of messages."""

import re

MAX_PREVIEW_LENGTH = 255
_MAX_READ_CHARACTERS = 8192  # characters of the text that are read
_RULER = re.compile(r"[\s\-_=*#~+.·•—–|<>]*+")  # noqa: RUF001 - dashes of several lengths
_BRACKETED = re.compile(r"\[(?:cid|image|bild|inline image)[: ][^\]\n]{0,300}\]", re.IGNORECASE)
# Newsletters pad their first line with invisible characters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060-\u2064\ufeff]+"
)


def build_preview(text: str) -> str:
    """Return the beginning of a text, at most 255 characters on one line.

    Quotes and ruler lines are left out.
    """
    lines: list[str] = []
    length = 0
    for line in _BRACKETED.sub("", text[:_MAX_READ_CHARACTERS]).split("\n"):
        words = " ".join(_INVISIBLE.sub("", line).split())
        if not words or words[0] == ">" or _RULER.fullmatch(words):
            continue
        lines.append(words)
        length += len(words) + 1
        if length > MAX_PREVIEW_LENGTH + 1:
            break
    return shorten_text_at_word_end(" ".join(lines), MAX_PREVIEW_LENGTH)


def shorten_text_at_word_end(text: str, max_length: int) -> str:
    """Cut a text at the end of a word and add an ellipsis, if it is too long."""
    if len(text) <= max_length:
        return text
    shortened = text[: max_length - 1]
    if not text[max_length - 1].isspace():
        head, blank, tail = shortened.rpartition(" ")
        # A very long word is cut inside, since nothing would be left otherwise.
        shortened = head if blank and len(tail) < max_length // 2 else shortened
    return shortened.rstrip() + "…"
