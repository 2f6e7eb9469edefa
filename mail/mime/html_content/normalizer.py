"""Rewriting of HTML to known tags that are all closed, with a limited depth.

The result has nothing that tokenizers read differently (comments, raw text, foreign elements,
unusual attributes). So the depth counted here is the depth that the sanitizer sees.
"""

import html as entities
import re
from collections import Counter
from dataclasses import dataclass, field

from mail.mime.html_content.tokenizer import names, tokens

MOST_DEPTH = 500
_MOST_ATTRIBUTES = 64
_REACH = 8  # innermost open elements that are searched for an unclosed sibling

_ATTRIBUTE = re.compile(r"([^\s=/\"'<>]++)(?:\s*+=\s*+(\"[^\"]*+\"|'[^']*+'|[^\s>]*+))?")
_EMPTY = frozenset(("br", "col", "hr", "img", "wbr"))
_ROWS = frozenset(("tbody", "thead", "tfoot"))
_IN_TABLE = {
    "td": _ROWS | {"tr"},
    "th": _ROWS | {"tr"},
    "tr": _ROWS,
    "tbody": frozenset[str](),
    "thead": frozenset[str](),
    "tfoot": frozenset[str](),
    "caption": frozenset[str](),
    "colgroup": frozenset[str](),
}  # tags that can stay open between the table and each part
_ENDED_BY = {
    "p": frozenset(("p",)),
    "li": frozenset(("li",)),
    "dt": frozenset(("dt", "dd")),
    "dd": frozenset(("dt", "dd")),
    "a": frozenset(("a",)),
}
_INLINE = names("p a abbr b big cite code em font i s small span strike strong sub sup tt u")


class TooDeep(Exception):
    """The HTML has more than 500 open elements at once."""


@dataclass(slots=True)
class _Writing:
    """The output, the open elements, and how often each tag is open in each table."""

    out: list[str] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    tables: list[tuple[int, Counter[str]]] = field(default_factory=lambda: [(0, Counter())])

    def push(self, name: str) -> None:
        """Add an open element. Raises HtmlTooDeepError at a depth of 500."""
        if len(self.stack) >= MOST_DEPTH:
            raise TooDeep
        self.stack.append(name)
        if name == "table":
            self.tables.append((len(self.stack), Counter()))
        else:
            self.tables[-1][1][name] += 1

    def pop(self) -> str:
        """Close the innermost element and return its tag."""
        name = self.stack.pop()
        if name == "table":
            self.tables.pop()
        else:
            self.tables[-1][1][name] -= 1
        self.out.append(f"</{name}>")
        return name


def canonical(html: str, allowed: frozenset[str]) -> str:
    """Rewrite HTML with balanced tags of the allowed names.

    Raises HtmlTooDeepError beyond a depth of 500.
    """
    writing = _Writing()
    for text, name, attributes in tokens(html):
        if text:
            writing.out.append(text.replace(">", "&gt;"))
        if name[:1] == "/":
            _close(writing, name[1:])
        elif name in allowed:
            _open(writing, name, attributes)
    while writing.stack:
        writing.pop()
    return "".join(writing.out)


def _open(writing: _Writing, name: str, attributes: str) -> None:
    """Write a start tag and close the elements that it ends."""
    if name in _IN_TABLE and not _make_room(writing, name):
        return  # a cell without a table is no element
    if name in _ENDED_BY:
        _end_neighbour(writing, _ENDED_BY[name])
    written = _attributes(attributes) if attributes else ""
    writing.out.append(f"<{name}{written}>")
    if name not in _EMPTY:
        writing.push(name)


def _close(writing: _Writing, name: str) -> None:
    """Close the innermost element with a tag, if it is open in the innermost table."""
    floor, counts = writing.tables[-1]
    if name == "table":
        while floor and writing.pop() != "table":
            pass
    elif counts[name]:
        while writing.pop() != name:
            pass


def _make_room(writing: _Writing, name: str) -> bool:
    """Close the elements that a part of a table ends. Returns False without a table."""
    floor = writing.tables[-1][0]
    if not floor:
        return False
    around = _IN_TABLE[name]
    while len(writing.stack) > floor and writing.stack[-1] not in around:
        writing.pop()
    return True


def _end_neighbour(writing: _Writing, names: frozenset[str]) -> None:
    """Close an open sibling, if only inline elements are open inside of it."""
    floor = writing.tables[-1][0]
    for place in range(len(writing.stack) - 1, max(floor, len(writing.stack) - _REACH) - 1, -1):
        if writing.stack[place] in names:
            while len(writing.stack) > place:
                writing.pop()
            return
        if writing.stack[place] not in _INLINE:
            return


def _attributes(text: str) -> str:
    """Return at most 64 attributes in lower case with quoted, escaped values."""
    out: list[str] = []
    for found in _ATTRIBUTE.finditer(text):
        name, value = found.group(1).lower(), found.group(2) or ""
        if value[:1] in ('"', "'") and len(value) > 1:
            value = value[1:-1]
        value = entities.unescape(value) if "&" in value else value
        out.append(f' {name}="{entities.escape(value)}"')
        if len(out) == _MOST_ATTRIBUTES:
            break
    return "".join(out)
