"""The tree of the MIME parts of a message, with their offsets and content fields."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ParsedPart:
    """A node of the MIME tree; offsets count bytes from the start of the message.

    A multipart directly inside a message/rfc822 part has the section of its text, "2.TEXT", because
    IMAP gives it no number.
    """

    section: str
    content_type: str
    header_start: int
    body_start: int
    body_end: int
    params: dict[str, str] = field(default_factory=dict)
    disposition: str | None = None
    disposition_params: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    content_id: str | None = None  # without angle brackets
    encoding: str = "7bit"
    parts: tuple["ParsedPart", ...] = ()
    lines: int | None = None  # of text and message parts
    truncated: bool = False  # a limit was exceeded here; at the root: anywhere
    _parts_by_section: dict[str, "ParsedPart"] | None = field(
        default=None, init=False, repr=False, compare=False
    )  # of this part and all below, from the first call of `find_part` on

    @property
    def size(self) -> int:
        """The bytes of the encoded body."""
        return self.body_end - self.body_start


def walk_parts(part: ParsedPart) -> Iterator[ParsedPart]:
    """Yield the parts of a tree in the order of the message, parents first."""
    waiting = [part]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(reversed(part.parts))


def walk_own_parts_with_parents(
    part: ParsedPart,
) -> Iterator[tuple[ParsedPart, tuple[ParsedPart, ...]]]:
    """Yield the parts of a message in order, each with its parents, outermost first.

    An attached message is one part; its own parts are left out.
    """
    waiting: list[tuple[ParsedPart, tuple[ParsedPart, ...]]] = [(part, ())]
    while waiting:
        part, parents = waiting.pop()
        yield part, parents
        if part.content_type.startswith("multipart/"):
            below = (*parents, part)
            waiting.extend((child, below) for child in reversed(part.parts))


def find_part(part: ParsedPart, section: str) -> ParsedPart | None:
    """Return the part with a section, None if there is none.

    The first call walks the tree and stores an index of its sections; further calls take constant
    time, however many parts the sender wrote.
    """
    index = part._parts_by_section  # noqa: SLF001 - this module owns the class
    if index is None:
        index = {}
        for inner in walk_parts(part):
            index.setdefault(inner.section, inner)
        object.__setattr__(part, "_parts_by_section", index)
    return index.get(section)


def json_rows_from_tree(part: ParsedPart) -> list[Any]:
    """Return a tree as JSON rows, one per part, parents first, with the number of children."""
    return [
        [
            part.section,
            part.content_type,
            part.header_start,
            part.body_start,
            part.body_end,
            part.params or 0,
            part.disposition,
            part.disposition_params or 0,
            part.filename,
            part.content_id,
            part.encoding,
            part.lines,
            int(part.truncated),
            len(part.parts),
        ]
        for part in walk_parts(part)
    ]


def tree_from_json_rows(rows: list[Any]) -> ParsedPart:
    """Return the tree of the rows that `json_rows_from_tree` made."""
    built: list[ParsedPart] = []  # the last one is the next sibling
    for row in reversed(rows):
        count = row[13]
        children = tuple(built[: -count - 1 : -1])
        del built[len(built) - count :]
        built.append(
            ParsedPart(
                section=row[0],
                content_type=row[1],
                header_start=row[2],
                body_start=row[3],
                body_end=row[4],
                params=row[5] or {},
                disposition=row[6],
                disposition_params=row[7] or {},
                filename=row[8],
                content_id=row[9],
                encoding=row[10],
                parts=children,
                lines=row[11],
                truncated=bool(row[12]),
            )
        )
    return built[0]
