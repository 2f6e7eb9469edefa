"""Filtering of the CSS declarations of a style attribute."""

import re
from dataclasses import dataclass

from mail.mime.html_content.tokenizer import names

_PROPERTIES = names(
    "background-color border border-bottom border-bottom-color border-bottom-style"
    " border-bottom-width border-collapse border-color border-left border-left-color"
    " border-left-style border-left-width border-radius border-right border-right-color"
    " border-right-style border-right-width border-spacing border-style border-top"
    " border-top-color border-top-style border-top-width border-width box-sizing caption-side"
    " clear color direction display empty-cells float font font-family font-size font-style"
    " font-variant font-weight height letter-spacing line-height list-style list-style-position"
    " list-style-type margin margin-bottom margin-left margin-right margin-top max-height"
    " max-width min-height min-width opacity overflow padding padding-bottom padding-left"
    " padding-right padding-top table-layout text-align text-decoration text-indent"
    " text-transform unicode-bidi vertical-align visibility white-space width word-break"
    " word-spacing word-wrap overflow-wrap"
)
# No backslash (escapes), no "<", no other functions: url() and similar ones load content.
_VALUE = re.compile(
    r"(?:[\w\s#%.,'\"!+*/-]|(?:rgba?|hsla?|calc|min|max)\([\w\s%.,+*/-]*\))+", re.IGNORECASE
)
_OVERLAY = re.compile(r"(?:^|[\s(,*/+])-\s*[\d.]")  # negative lengths move things over other things
_URL = re.compile(r"url\(\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
_LONGEST = 16 << 10


@dataclass(frozen=True, slots=True)
class Style:
    """The allowed declarations of a style attribute."""

    text: str
    urls: int  # number of remote URLs in the original attribute


def safe_style(value: str) -> Style:
    """Keep the declarations that can't load, cover or run anything."""
    value = value[:_LONGEST]
    kept: list[str] = []
    for declaration in _declarations(value):
        name, colon, setting = declaration.partition(":")
        name, setting = name.strip().lower(), setting.strip()
        if colon and name in _PROPERTIES and _is_safe(setting):
            kept.append(f"{name}:{setting}")
    return Style(";".join(kept), len(_URL.findall(value)))


def _is_safe(setting: str) -> bool:
    return bool(_VALUE.fullmatch(setting)) and not _OVERLAY.search(setting)


def _declarations(value: str) -> list[str]:
    """Split a style attribute at semicolons outside of quotes and brackets."""
    if not any(mark in value for mark in "\"'("):
        return value.split(";")
    out: list[str] = []
    start, closing = 0, ""
    for at, character in enumerate(value):
        if closing:
            closing = "" if character == closing else closing
        elif character in "\"'(":
            closing = ")" if character == "(" else character
        elif character == ";":
            out.append(value[start:at])
            start = at + 1
    out.append(value[start:])
    return out
