"""The first words of a message, for lists."""

import re

LONGEST_PREVIEW = 255
_LONGEST_LOOK = 8192  # characters of the text that are looked at
_RULER = re.compile(r"[\s\-_=*#~+.·•—–|<>]*+")  # noqa: RUF001 - dashes of several lengths
_BRACKETED = re.compile(r"\[(?:cid|image|bild|inline image)[: ][^\]\n]{0,300}\]", re.IGNORECASE)
# Newsletters pad their first line with what nobody sees.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060-\u2064\ufeff]+"
)


def preview(text: str) -> str:
    """Cut the beginning of a text to 255 characters, without quotes, rulers and line ends."""
    kept: list[str] = []
    length = 0
    for line in _BRACKETED.sub("", text[:_LONGEST_LOOK]).split("\n"):
        words = " ".join(_INVISIBLE.sub("", line).split())
        if not words or words[0] == ">" or _RULER.fullmatch(words):
            continue
        kept.append(words)
        length += len(words) + 1
        if length > LONGEST_PREVIEW + 1:
            break
    return shortened(" ".join(kept), LONGEST_PREVIEW)


def shortened(text: str, longest: int) -> str:
    """Cut a text at the end of a word, with an ellipsis where something is missing."""
    if len(text) <= longest:
        return text
    cut = text[: longest - 1]
    if not text[longest - 1].isspace():
        head, blank, tail = cut.rpartition(" ")
        # One endless word is cut within, or nothing would be left of it.
        cut = head if blank and len(tail) < longest // 2 else cut
    return cut.rstrip() + "…"
