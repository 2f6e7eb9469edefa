"""Filtering of the CSS declarations of a style attribute."""

import re
from dataclasses import dataclass

from mail.mime.html_content.tokenizer import word_set

_PROPERTIES = word_set(
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
_URL = re.compile(r"url\(\s*+[\"']?\s*+(?:https?:)?//", re.IGNORECASE)
_MAX_STYLE_LENGTH = 16 << 10


@dataclass(frozen=True, slots=True)
class SafeStyle:
    """The allowed declarations of a style attribute."""

    text: str
    remote_urls: int  # number of remote URLs in the original attribute


def keep_safe_declarations(style_text: str) -> SafeStyle:
    """Keep the declarations that can't load, cover or run anything."""
    style_text = style_text[:_MAX_STYLE_LENGTH]
    declarations: list[str] = []
    for declaration in _split_declarations(style_text):
        name, colon, setting = declaration.partition(":")
        name, setting = name.strip().lower(), setting.strip()
        if colon and name in _PROPERTIES and _is_safe_value(setting):
            declarations.append(f"{name}:{setting}")
    return SafeStyle(";".join(declarations), len(_URL.findall(style_text)))


def _is_safe_value(property_value: str) -> bool:
    return bool(_VALUE.fullmatch(property_value)) and not _OVERLAY.search(property_value)


def _split_declarations(style_text: str) -> list[str]:
    """Split a style attribute at semicolons outside of quotes and brackets."""
    if not any(delimiter in style_text for delimiter in "\"'("):
        return style_text.split(";")
    out: list[str] = []
    start, closing = 0, ""
    for at, character in enumerate(style_text):
        if closing:
            closing = "" if character == closing else closing
        elif character in "\"'(":
            closing = ")" if character == "(" else character
        elif character == ";":
            out.append(style_text[start:at])
            start = at + 1
    out.append(style_text[start:])
    return out
