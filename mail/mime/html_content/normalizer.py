"""Rewriting of HTML to known tags that are all closed, with a limited depth.

The result has nothing that tokenizers read differently (comments, raw text, foreign elements,
unusual attributes). So the depth counted here is the depth that the sanitizer sees.
"""

import html as entities
import re
from collections import Counter
from dataclasses import dataclass, field

from mail.mime.html_content.tokenizer import tokenize, word_set

MAX_HTML_DEPTH = 500
_MAX_ATTRIBUTES = 64
_SIBLING_SEARCH_DEPTH = 8  # innermost open elements that are searched for an unclosed sibling

_ATTRIBUTE = re.compile(r"([^\s=/\"'<>]++)(?:\s*+=\s*+(\"[^\"]*+\"|'[^']*+'|[^\s>]*+))?")
_VOID_TAGS = frozenset(("br", "col", "hr", "img", "wbr"))
_ROW_GROUPS = frozenset(("tbody", "thead", "tfoot"))
_TABLE_PART_PARENTS = {
    "td": _ROW_GROUPS | {"tr"},
    "th": _ROW_GROUPS | {"tr"},
    "tr": _ROW_GROUPS,
    "tbody": frozenset[str](),
    "thead": frozenset[str](),
    "tfoot": frozenset[str](),
    "caption": frozenset[str](),
    "colgroup": frozenset[str](),
}  # tags that can stay open between the table and each part
_CLOSES_SIBLINGS = {
    "p": frozenset(("p",)),
    "li": frozenset(("li",)),
    "dt": frozenset(("dt", "dd")),
    "dd": frozenset(("dt", "dd")),
    "a": frozenset(("a",)),
}
_INLINE_TAGS = word_set(
    "p a abbr b big cite code em font i s small span strike strong sub sup tt u"
)


class HtmlTooDeepError(Exception):
    """The HTML has more than 500 open elements at once."""


@dataclass(slots=True)
class _HtmlWriter:
    """The output, the open elements, and how often each tag is open in each table."""

    output: list[str] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    tables: list[tuple[int, Counter[str]]] = field(default_factory=lambda: [(0, Counter())])

    def push_tag(self, name: str) -> None:
        """Add an open element. Raises HtmlTooDeepError at a depth of 500."""
        if len(self.open_tags) >= MAX_HTML_DEPTH:
            raise HtmlTooDeepError
        self.open_tags.append(name)
        if name == "table":
            self.tables.append((len(self.open_tags), Counter()))
        else:
            self.tables[-1][1][name] += 1

    def close_innermost(self) -> str:
        """Write the end tag of the innermost open element and return the name of the element."""
        name = self.open_tags.pop()
        if name == "table":
            self.tables.pop()
        else:
            self.tables[-1][1][name] -= 1
        self.output.append(f"</{name}>")
        return name


def normalize_html(html: str, allowed_tags: frozenset[str]) -> str:
    """Rewrite HTML with balanced tags of the allowed names.

    Raises HtmlTooDeepError beyond a depth of 500.
    """
    writing = _HtmlWriter()
    for text, name, attributes in tokenize(html):
        if text:
            writing.output.append(text.replace(">", "&gt;"))
        if name[:1] == "/":
            _close_element(writing, name[1:])
        elif name in allowed_tags:
            _open_element(writing, name, attributes)
    while writing.open_tags:
        writing.close_innermost()
    return "".join(writing.output)


def _open_element(writing: _HtmlWriter, tag: str, attributes: str) -> None:
    """Write a start tag and close the elements that it ends."""
    if tag in _TABLE_PART_PARENTS and not _try_close_before_table_part(writing, tag):
        return  # a cell without a table is no element
    if tag in _CLOSES_SIBLINGS:
        _close_unclosed_sibling(writing, _CLOSES_SIBLINGS[tag])
    attributes_text = _first_normalized_attributes(attributes) if attributes else ""
    writing.output.append(f"<{tag}{attributes_text}>")
    if tag not in _VOID_TAGS:
        writing.push_tag(tag)


def _close_element(writing: _HtmlWriter, tag: str) -> None:
    """Close the innermost element with a tag, if it is open in the innermost table."""
    floor, counts = writing.tables[-1]
    if tag == "table":
        while floor and writing.close_innermost() != "table":
            pass
    elif counts[tag]:
        while writing.close_innermost() != tag:
            pass


def _try_close_before_table_part(writing: _HtmlWriter, tag: str) -> bool:
    """Close the elements that a part of a table ends. Returns False without a table."""
    floor = writing.tables[-1][0]
    if not floor:
        return False
    around = _TABLE_PART_PARENTS[tag]
    while len(writing.open_tags) > floor and writing.open_tags[-1] not in around:
        writing.close_innermost()
    return True


def _close_unclosed_sibling(writing: _HtmlWriter, sibling_tags: frozenset[str]) -> None:
    """Close an open sibling, if only inline elements are open inside of it."""
    floor = writing.tables[-1][0]
    for index in range(
        len(writing.open_tags) - 1,
        max(floor, len(writing.open_tags) - _SIBLING_SEARCH_DEPTH) - 1,
        -1,
    ):
        if writing.open_tags[index] in sibling_tags:
            while len(writing.open_tags) > index:
                writing.close_innermost()
            return
        if writing.open_tags[index] not in _INLINE_TAGS:
            return


def _first_normalized_attributes(text: str) -> str:
    """Return at most 64 attributes in lower case with quoted, escaped values."""
    out: list[str] = []
    for match in _ATTRIBUTE.finditer(text):
        name, value = match.group(1).lower(), match.group(2) or ""
        if value[:1] in ('"', "'") and len(value) > 1:
            value = value[1:-1]
        value = entities.unescape(value) if "&" in value else value
        out.append(f' {name}="{entities.escape(value)}"')
        if len(out) == _MAX_ATTRIBUTES:
            break
    return "".join(out)
