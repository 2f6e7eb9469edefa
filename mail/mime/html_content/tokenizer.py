"""Tokens of HTML: texts and tags in one pass, without a tree, in linear time."""

import re
from collections.abc import Iterator

_TEXT_AND_TAG = re.compile(
    r"([^<]*+)(?:<(/?[a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+'|))*+)>)?", re.DOTALL
)
_ENDS = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in (
        "script",
        "style",
        "title",
        "textarea",
        "xmp",
        "iframe",
        "noembed",
        "noframes",
        "template",
        "select",
        "svg",
        "math",
    )
}

Token = tuple[str, str, str]  # text, name and attributes of the tag after it; a closing tag is "/p"


def names(text: str) -> frozenset[str]:
    """Return the set of the words of a text."""
    return frozenset(text.split())


def tokens(html: str) -> Iterator[Token]:
    """Yield each tag with the text before it, which is not unescaped. Names are lower case.

    Skips comments, declarations and the content of scripts, styles and drawings. A comment without
    end hides the rest.
    """
    at = 0
    while found := _TEXT_AND_TAG.match(html, at):
        text, name, attributes = found.groups()
        at = found.end()
        if attributes is not None:
            name = name.lower()
            yield text, name, attributes
            if name in _ENDS:
                at = _after(html, name, at)
            continue
        if text:
            yield text, "", ""
        if at == len(html):
            return
        following = html[at + 1 : at + 2]
        if following.isascii() and following.isalpha():
            # A tag without an end. Searching again after it would take quadratic time.
            yield html[at:].replace("<", "&lt;"), "", ""
            return
        if following in ("/", "!", "?"):
            at = _markup_end(html, at)
            if at < 0:
                return
        else:
            yield "&lt;", "", ""
            at += 1


def _after(html: str, name: str, at: int) -> int:
    """Return the offset of the closing tag of an element with skipped content."""
    end = _ENDS[name].search(html, at)
    return end.start() if end else len(html)


def _markup_end(html: str, start: int) -> int:
    """Return the offset after a comment or declaration, -1 if it has no end."""
    if html.startswith("<!--", start):
        end = html.find("-->", start + 2)
        return end + 3 if end >= 0 else -1
    return html.find(">", start) + 1 or -1
