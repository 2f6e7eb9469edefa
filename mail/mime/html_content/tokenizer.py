"""Tokens of HTML: texts and tags in one pass, without a tree, in linear time."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# The text can contain "<" that begins neither a tag nor a comment.
_TEXT_AND_TAG = re.compile(
    r"((?:[^<]++|<(?![a-zA-Z/!?]))*+)"
    r"(?:<(/?[a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+'|))*+)>)?",
    re.DOTALL,
)
_END_TAGS = {
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


class HtmlToken(NamedTuple):
    """A tag with the text before it. At the end of the HTML there can be a text without a tag."""

    text: str  # not unescaped
    tag: str = ""  # in lower case; of a closing tag "/p"
    attributes: str = ""


def word_set(text: str) -> frozenset[str]:
    """Return the set of the words of a text."""
    return frozenset(text.split())


def tokenize(html: str) -> Iterator[HtmlToken]:
    """Yield each tag with the text before it.

    Skips comments, declarations and the content of scripts, styles and drawings. A comment without
    end hides the rest.
    """
    at = 0
    while match := _TEXT_AND_TAG.match(html, at):
        text, name, attributes = match.groups()
        text = text.replace("<", "&lt;")
        at = match.end()
        if attributes is not None:
            name = name.lower()
            yield HtmlToken(text, name, attributes)
            if name in _END_TAGS:
                at = _find_closing_tag(html, name, at)
            continue
        if text:
            yield HtmlToken(text)
        if at == len(html):
            return
        following = html[at + 1 : at + 2]
        if following.isascii() and following.isalpha():
            # A tag without an end. Searching again after it would take quadratic time.
            yield HtmlToken(html[at:].replace("<", "&lt;"))
            return
        at = _find_comment_or_declaration_end(html, at)
        if at < 0:
            return


def _find_closing_tag(html: str, tag: str, start: int) -> int:
    """Return the offset of the closing tag of an element with skipped content."""
    end = _END_TAGS[tag].search(html, start)
    return end.start() if end else len(html)


def _find_comment_or_declaration_end(html: str, start: int) -> int:
    """Return the offset after a comment or declaration, -1 if it has no end."""
    if html.startswith("<!--", start):
        end = html.find("-->", start + 2)
        return end + 3 if end >= 0 else -1
    return html.find(">", start) + 1 or -1
