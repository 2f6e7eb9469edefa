"""HTML rewritten so that every parser reads it alike: known tags only, all closed, depth counted.

What the sanitiser behind this gets holds nothing that tokenisers dispute about (comments, raw
text, foreign elements, odd attributes), so the depth counted here is the depth it meets.
"""

import html as entities
import re
from collections import Counter
from dataclasses import dataclass, field

from mail.mime.html_content.tokenizer import names, tokens

MOST_DEPTH = 500
_MOST_ATTRIBUTES = 64
_REACH = 8  # open elements that are looked at for one that ends by itself

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
}  # what stays open around each, below its table
_ENDED_BY = {
    "p": frozenset(("p",)),
    "li": frozenset(("li",)),
    "dt": frozenset(("dt", "dd")),
    "dd": frozenset(("dt", "dd")),
    "a": frozenset(("a",)),
}
_INLINE = names("p a abbr b big cite code em font i s small span strike strong sub sup tt u")


class TooDeep(Exception):
    """More elements are open at once than any reader has use for."""


@dataclass(slots=True)
class _Writing:
    """The open elements, and how many of a name are open since the innermost table."""

    out: list[str] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    tables: list[tuple[int, Counter[str]]] = field(default_factory=lambda: [(0, Counter())])

    def push(self, name: str) -> None:
        """Open an element."""
        if len(self.stack) >= MOST_DEPTH:
            raise TooDeep
        self.stack.append(name)
        if name == "table":
            self.tables.append((len(self.stack), Counter()))
        else:
            self.tables[-1][1][name] += 1

    def pop(self) -> str:
        """Close the innermost element."""
        name = self.stack.pop()
        if name == "table":
            self.tables.pop()
        else:
            self.tables[-1][1][name] -= 1
        self.out.append(f"</{name}>")
        return name


def canonical(html: str, allowed: frozenset[str]) -> str:
    """Rewrite HTML with balanced tags of the allowed names; raise TooDeep beyond a depth of 500."""
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
    if name in _IN_TABLE and not _make_room(writing, name):
        return  # a cell without a table is no element
    if name in _ENDED_BY:
        _end_neighbour(writing, _ENDED_BY[name])
    written = _attributes(attributes) if attributes else ""
    writing.out.append(f"<{name}{written}>")
    if name not in _EMPTY:
        writing.push(name)


def _close(writing: _Writing, name: str) -> None:
    """Close the innermost element of a name; beyond the table it stands in none is closed."""
    floor, counts = writing.tables[-1]
    if name == "table":
        while floor and writing.pop() != "table":
            pass
    elif counts[name]:
        while writing.pop() != name:
            pass


def _make_room(writing: _Writing, name: str) -> bool:
    """Close what a part of a table ends by its beginning; tell whether there is a table."""
    floor = writing.tables[-1][0]
    if not floor:
        return False
    around = _IN_TABLE[name]
    while len(writing.stack) > floor and writing.stack[-1] not in around:
        writing.pop()
    return True


def _end_neighbour(writing: _Writing, names: frozenset[str]) -> None:
    """Close the element of the same kind before it, if nothing but inline ones lies between."""
    floor = writing.tables[-1][0]
    for place in range(len(writing.stack) - 1, max(floor, len(writing.stack) - _REACH) - 1, -1):
        if writing.stack[place] in names:
            while len(writing.stack) > place:
                writing.pop()
            return
        if writing.stack[place] not in _INLINE:
            return


def _attributes(text: str) -> str:
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
