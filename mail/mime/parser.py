"""Parsing of a message into MIME parts with an explicit stack, without recursion.

One pass over the lines that begin with two hyphens. Each is looked up among the open boundaries, so
the time grows with the message and not with the depth of its parts.
"""

import re
from dataclasses import dataclass, field

from mail.mime.encoded_words import unfolded
from mail.mime.header_fields import MOST_HEADER_BYTES, Field, fields, fields_end
from mail.mime.header_parameters import MOST_BYTES, filename_of, parameters
from mail.mime.mime_tree import Part

MOST_DEPTH = 100
MOST_PARTS = 10_000
_WINDOW = 4096  # bytes of the first search for the end of a header block
_LONGEST_CID = 998
_CR = 13

# A line end is LF, with one or two CR before it, or a CR alone.
_BLANK_OR_DASHES = re.compile(
    rb"\n(?:\r{0,2}\n|\r|(?P<lf>--))|\r(?!\r{0,2}\n)(?:\r|(?P<cr>--))",
)
_BLANK_LINE = re.compile(rb"\r{0,2}\n|\r")
_REST_OF_LINE = re.compile(rb"([^\r\n]{0,1000})(\r{0,2}\n|\r|\Z)")
_DASHES = re.compile(rb"[\r\n]--")
_TYPE = re.compile(r"[!-.0-~]+/[!-.0-~]+")

_IDENTITY = ("7bit", "8bit", "binary")
_ENCODINGS = {
    "": "7bit",
    "7-bit": "7bit",
    "7 bit": "7bit",
    "8-bit": "8bit",
    "8 bit": "8bit",
    "bin": "binary",
    "base-64": "base64",
    "base 64": "base64",
    "b64": "base64",
    "quotedprintable": "quoted-printable",
    "quoted printable": "quoted-printable",
    "qp": "quoted-printable",
    "uuencode": "x-uuencode",
    "uue": "x-uuencode",
    "x-uue": "x-uuencode",
}
_MESSAGES = ("message/rfc822", "message/global")


@dataclass(slots=True)
class _Node:
    """A part while it is read."""

    section: str
    header_start: int
    body_start: int = 0
    body_end: int = 0
    content_type: str = "text/plain"
    params: dict[str, str] = field(default_factory=dict)
    disposition: str | None = None
    disposition_params: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    cid: str | None = None
    encoding: str = "7bit"
    truncated: bool = False
    children: list[int] = field(default_factory=list)  # indexes into `_ParserState.nodes`
    prefix: str = ""  # of the sections of its children
    boundary: bytes = b""


@dataclass(slots=True)
class _Reading:
    """The state of the parser."""

    raw: bytes
    has_bare_cr: bool
    nodes: list[_Node] = field(default_factory=list)
    stack: list[_Node] = field(default_factory=list)  # outermost first, with the leaf
    marks: dict[bytes, list[int]] = field(default_factory=dict)  # boundary: indexes of the stack
    root_fields: list[Field] = field(default_factory=list)
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class _Delimiter:
    """A boundary line."""

    start: int  # of the line end before it, which is part of the delimiter
    end: int
    place: int  # of the multipart it delimits
    closes: bool


def split(raw: bytes) -> Part:
    """Return the tree of the MIME parts of a message. Never raises, for any bytes.

    Beyond a limit (depth 100, 10,000 parts, header block 1 MiB, parameter list 64 KiB) the rest is
    one opaque part; it and the root are marked as truncated.
    """
    return opened(raw)[0]


def opened(raw: bytes) -> tuple[Part, list[Field]]:
    """Return the tree of a message and its own header fields, which are read once."""
    reading = _Reading(raw, b"\r--" in raw)
    at = _enter(reading, 0)
    while reading.marks and (found := _next_delimiter(reading, at)):
        _close_down_to(reading, found)
        at = found.end
        if found.closes:
            _unmark(reading, found.place)
        elif raw.startswith(b"--", at) and _delimiter_at(reading, at - 1):
            continue  # two adjacent boundary lines enclose no part
        elif len(reading.nodes) >= MOST_PARTS:
            _swallow_rest(reading, found.end)
            break
        else:
            at = _enter(reading, found.end)
    end = len(raw)
    for node in reading.stack:
        node.body_end = end
    return _frozen(reading), reading.root_fields


def _enter(reading: _Reading, start: int) -> int:
    """Begin the part with the header at `start`, and the messages nested in it."""
    while True:
        node = _Node(_section(reading), start)
        if reading.stack:
            reading.stack[-1].children.append(len(reading.nodes))
        _read_header(reading, node)
        reading.nodes.append(node)
        depth = len(reading.stack)
        reading.stack.append(node)
        if not node.boundary and node.content_type not in _MESSAGES:
            return node.body_start
        if depth >= MOST_DEPTH - 1 or len(reading.nodes) >= MOST_PARTS:
            node.truncated, node.boundary = True, b""
            return node.body_start
        if node.boundary:
            reading.marks.setdefault(node.boundary, []).append(depth)
            return node.body_start
        if node.encoding not in _IDENTITY or node.truncated:
            return node.body_start
        start = node.body_start


def _section(reading: _Reading) -> str:
    """Return the section of the next part as if it were no multipart.

    `_read_header` corrects the section of a multipart.
    """
    if not reading.stack:
        return "1"
    parent = reading.stack[-1]
    return f"{parent.prefix}{len(parent.children) + 1}"


def _read_header(reading: _Reading, node: _Node) -> None:
    """Parse the header of a part into its builder."""
    raw, start = reading.raw, node.header_start
    block_end, node.body_start, node.truncated = _header_end(reading, start)
    last = fields_end(raw, start, block_end)
    if last < block_end:
        block_end = node.body_start = last
    found = fields(raw[start:block_end])
    if not reading.nodes:
        reading.root_fields = found
    parent = reading.stack[-1] if reading.stack else None
    if parent and parent.content_type == "multipart/digest":
        node.content_type = "message/rfc822"
    _apply(node, found)
    node.prefix = f"{node.section}."
    if node.content_type.startswith("multipart/"):
        if parent is None:
            node.section = node.prefix = ""
        elif parent.content_type in _MESSAGES:
            node.section, node.prefix = f"{parent.section}.TEXT", parent.prefix


def _apply(node: _Node, found: list[Field]) -> None:
    """Apply the Content-* fields; of equal names the first one counts."""
    content: dict[str, str] = {}
    for name, value in found:
        if name.startswith("content-"):
            content.setdefault(name, value)
            if len(value) > MOST_BYTES:
                node.truncated = True
    if "content-type" in content:
        _apply_type(node, unfolded(content["content-type"]))
    if "content-disposition" in content:
        kind, node.disposition_params = parameters(unfolded(content["content-disposition"]))
        node.disposition = kind or None
    if node.params or node.disposition_params:
        node.filename = filename_of(
            node.disposition_params.get("filename"), node.params.get("name")
        )
    if "content-id" in content:
        node.cid = unfolded(content["content-id"]).strip("<> \t")[:_LONGEST_CID] or None
    if "content-transfer-encoding" in content:
        node.encoding = _encoding(unfolded(content["content-transfer-encoding"]))
    if node.truncated:
        node.content_type, node.boundary = "application/octet-stream", b""


def _apply_type(node: _Node, value: str) -> None:
    kind, node.params = parameters(value)
    if _TYPE.fullmatch(kind):
        node.content_type = kind
    elif kind == "text":  # a value of the time before MIME
        node.content_type = "text/plain"
    if node.content_type.startswith("multipart/"):
        boundary = node.params.get("boundary", "").rstrip(" \t")
        node.boundary = boundary.encode("utf-8", "replace")


def _encoding(value: str) -> str:
    name = value.partition(";")[0].partition("(")[0].strip().strip("\"'").lower()
    return _ENCODINGS.get(name, name)


def _header_end(reading: _Reading, start: int) -> tuple[int, int, bool]:
    """Return the end of the fields, the start of the body, and whether a limit was exceeded.

    A boundary line ends a header block too: parts without a blank line are common.
    """
    raw = reading.raw
    if start >= len(raw):
        return len(raw), len(raw), False
    blank = _BLANK_LINE.match(raw, start)
    if blank:
        return start, blank.end(), False
    limit = min(len(raw), start + MOST_HEADER_BYTES)
    if not reading.marks and (plain := _plain_header_end(raw, start, limit)):
        return *plain, False
    at, until = max(start - 1, 0), start
    while until < limit:
        until = min(limit, 4 * until - 3 * start + _WINDOW)
        # A little more than the window, or a line end cut in two would look like another one.
        while edge := _BLANK_OR_DASHES.search(raw, at, min(until + 4, limit)):
            if edge.start() >= until:
                break
            at = edge.start() + 1
            if edge.group("lf") is None and edge.group("cr") is None:
                return at, edge.end(), False
            if reading.marks and _delimiter_at(reading, at - 1):
                return at, at, False
        at = max(at, until)
    return limit, limit, limit < len(raw)


def _plain_header_end(raw: bytes, start: int, limit: int) -> tuple[int, int] | None:
    """Find the blank line quickly if all line ends are of one kind, else return None."""
    near = min(limit, start + 16 * _WINDOW)
    first = raw.find(b"\n", start, near)
    if first <= start:
        return None
    if raw[first - 1] == _CR:
        end = raw.find(b"\r\n\r\n", start, near) + 2
        text = raw[start:end]
        is_plain = end > 1 and text.count(b"\n") == text.count(b"\r") == text.count(b"\r\n")
        return (end, end + 2) if is_plain else None
    end = raw.find(b"\n\n", start, near) + 1
    return (end, end + 1) if end and raw.find(b"\r", start, end) < 0 else None


def _next_delimiter(reading: _Reading, at: int) -> _Delimiter | None:
    """Return the next boundary line of any open multipart, None if there is none."""
    raw = reading.raw
    at = max(at - 1, 0)
    while True:
        if reading.has_bare_cr:
            dashes = _DASHES.search(raw, at)
            at = dashes.start() if dashes else -1
        else:
            at = raw.find(b"\n--", at)
        if at < 0:
            return None
        found = _delimiter_at(reading, at)
        if found:
            return found
        at += 1


def _delimiter_at(reading: _Reading, at: int) -> _Delimiter | None:
    """Return the delimiter in the line after `line_end`, which begins with two hyphens."""
    line = _REST_OF_LINE.match(reading.raw, at + 3)
    if line is None:
        return None
    text = line.group(1).rstrip(b" \t")
    places = reading.marks.get(text)
    closes = False
    if places is None and text.endswith(b"--"):
        places, closes = reading.marks.get(text[:-2]), True
    if not places:
        return None
    return _Delimiter(at, line.end(), places[-1], closes)


def _close_down_to(reading: _Reading, found: _Delimiter) -> None:
    """Close the open parts inside of the multipart of a delimiter."""
    raw, stack = reading.raw, reading.stack
    end = found.start
    if raw[end : end + 1] == b"\n" and end and raw[end - 1 : end] == b"\r":
        end -= 1
    while len(stack) > found.place + 1:
        _unmark(reading, len(stack) - 1)
        node = stack.pop()
        end = max(end, node.body_start)  # a header may end only at the delimiter itself
        node.body_end = end


def _unmark(reading: _Reading, place: int) -> None:
    boundary = reading.stack[place].boundary
    places = reading.marks.get(boundary)
    if places and places[-1] == place:
        places.pop()
        if not places:
            del reading.marks[boundary]


def _swallow_rest(reading: _Reading, start: int) -> None:
    """Add the rest of the message as one opaque part."""
    end = len(reading.raw)
    node = _Node(_section(reading), start, start, end, "application/octet-stream", truncated=True)
    reading.stack[-1].children.append(len(reading.nodes))
    reading.nodes.append(node)


def _frozen(reading: _Reading) -> Part:
    """Build the tree from its leaves up. Children come after their parents in the list."""
    nodes = reading.nodes
    nodes[0].truncated = any(node.truncated for node in nodes)
    lines = _lines(reading)
    parts: dict[int, Part] = {}
    for place in range(len(nodes) - 1, -1, -1):
        node = nodes[place]
        parts[place] = Part(
            section=node.section,
            content_type=node.content_type,
            header_start=node.header_start,
            body_start=node.body_start,
            body_end=node.body_end,
            params=node.params,
            disposition=node.disposition,
            disposition_params=node.disposition_params,
            filename=node.filename,
            cid=node.cid,
            encoding=node.encoding,
            parts=tuple([parts.pop(child) for child in node.children]),
            lines=lines.get(place),
            truncated=node.truncated,
        )
    return parts[0]


def _lines(reading: _Reading) -> dict[int, int]:
    """Count the lines of text and message parts in one pass over the bytes.

    Messages can be nested: counting each one alone would take time by their depth.
    """
    counted = {
        place: node
        for place, node in enumerate(reading.nodes)
        if node.content_type.startswith(("text/", "message/"))
    }
    offsets = {node.body_start for node in counted.values()}
    offsets.update(node.body_end for node in counted.values())
    upto: dict[int, int] = {}
    before = total = 0
    for offset in sorted(offsets):
        total += reading.raw.count(b"\n", before, offset)
        upto[offset] = total
        before = offset
    return {place: upto[node.body_end] - upto[node.body_start] for place, node in counted.items()}
