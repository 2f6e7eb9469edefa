"""HTML as a run of texts and tags: one pass, no tree, time by length alone."""

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

Token = tuple[str, str, str]  # text, name, attributes of the tag behind it; closing: "/p"


def names(text: str) -> frozenset[str]:
    """Make a set of the words of a text."""
    return frozenset(text.split())


def tokens(html: str) -> Iterator[Token]:
    """Go through the tags, each with the text before it (not unescaped); names are lower case.

    Comments, declarations, and what is between the tags of scripts, styles and drawings are
    passed over; so is a comment that never ends, with all behind it.
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
            # A tag without an end. To look again behind it would take quadratic time.
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
    """Find the closing tag of an element whose content is not read."""
    end = _ENDS[name].search(html, at)
    return end.start() if end else len(html)


def _markup_end(html: str, start: int) -> int:
    """Pass over a comment or a declaration; -1 where it has no end."""
    if html.startswith("<!--", start):
        end = html.find("-->", start + 2)
        return end + 3 if end >= 0 else -1
    return html.find(">", start) + 1 or -1
