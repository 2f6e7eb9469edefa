"""Parsing of a message into MIME parts with an explicit stack, without recursion.

One pass over the lines that begin with two hyphens. Each is looked up among the open boundaries, so
the time grows with the message and not with the depth of its parts.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from mail.mime.encoded_words import unfold_and_decode_utf8
from mail.mime.header_fields import (
    MAX_HEADER_BYTES,
    RawField,
    find_fields_end,
    parse_fields_with_lowercase_names,
)
from mail.mime.header_parameters import (
    MAX_PARAMETER_BYTES,
    first_filename,
    parse_value_and_parameters,
)
from mail.mime.mime_tree import ParsedPart

MAX_PART_DEPTH = 100
MAX_PARTS = 10_000
_HEADER_SEARCH_BYTES = 4096  # bytes of the first search for the end of a header block
_MAX_CONTENT_ID_LENGTH = 998
_CR = 13

# A line end is LF, with one or two CR before it, or a CR alone.
_BLANK_OR_DASHES = re.compile(
    rb"\n(?:\r{0,2}\n|\r|(?P<lf>--))|\r(?!\r{0,2}\n)(?:\r|(?P<cr>--))",
)
_BLANK_LINE = re.compile(rb"\r{0,2}\n|\r")
_REST_OF_LINE = re.compile(rb"([^\r\n]{0,1000})(\r{0,2}\n|\r|\Z)")
_DASHES = re.compile(rb"[\r\n]--")
_MEDIA_TYPE = re.compile(r"[!-.0-~]+/[!-.0-~]+")

_IDENTITY_ENCODINGS = ("7bit", "8bit", "binary")
_ENCODING_ALIASES = {
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
_MESSAGE_TYPES = ("message/rfc822", "message/global")


@dataclass(slots=True)
class _PartBuilder:
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
    content_id: str | None = None
    encoding: str = "7bit"
    truncated: bool = False
    children: list[int] = field(default_factory=list)  # indexes into `_ParserState.nodes`
    child_prefix: str = ""  # of the sections of its children
    boundary: bytes = b""


@dataclass(slots=True)
class _ParserState:
    """The state of the parser."""

    raw: bytes
    has_bare_cr: bool
    nodes: list[_PartBuilder] = field(default_factory=list)
    open_nodes: list[_PartBuilder] = field(default_factory=list)  # outermost first, with the leaf
    # boundary: indexes of the stack
    open_boundaries: dict[bytes, list[int]] = field(default_factory=dict)
    root_fields: list[RawField] = field(default_factory=list)
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class _Delimiter:
    """A boundary line."""

    start: int  # of the line end before it, which is part of the delimiter
    end: int
    stack_index: int  # of the multipart it delimits
    closes: bool


def parse_structure(raw: bytes) -> ParsedPart:
    """Return the tree of the MIME parts of a message. Never raises, for any bytes.

    Beyond a limit (depth 100, 10,000 parts, header block 1 MiB, parameter list 64 KiB) the rest is
    one opaque part; it and the root are marked as truncated.
    """
    return parse_structure_and_fields(raw)[0]


def parse_structure_and_fields(raw: bytes) -> tuple[ParsedPart, list[RawField]]:
    """Return the tree of a message and its own header fields, which are read once."""
    reading = _ParserState(raw, b"\r--" in raw)
    at = _begin_part_and_nested_messages(reading, 0)
    while reading.open_boundaries and (delimiter := _next_delimiter(reading, at)):
        _close_parts_inside(reading, delimiter)
        at = delimiter.end
        if delimiter.closes:
            _remove_boundary(reading, delimiter.stack_index)
        elif raw.startswith(b"--", at) and _delimiter_at(reading, at - 1):
            continue  # two adjacent boundary lines enclose no part
        elif len(reading.nodes) >= MAX_PARTS:
            _add_opaque_rest(reading, delimiter.end)
            break
        else:
            at = _begin_part_and_nested_messages(reading, delimiter.end)
    end = len(raw)
    for node in reading.open_nodes:
        node.body_end = end
    return _build_tree(reading), reading.root_fields


def _begin_part_and_nested_messages(state: _ParserState, start: int) -> int:
    """Begin the part with the header at `start`, and the messages nested in it."""
    while True:
        node = _PartBuilder(_next_section(state), start)
        if state.open_nodes:
            state.open_nodes[-1].children.append(len(state.nodes))
        _read_header(state, node)
        state.nodes.append(node)
        depth = len(state.open_nodes)
        state.open_nodes.append(node)
        if not node.boundary and node.content_type not in _MESSAGE_TYPES:
            return node.body_start
        if depth >= MAX_PART_DEPTH - 1 or len(state.nodes) >= MAX_PARTS:
            node.truncated, node.boundary = True, b""
            return node.body_start
        if node.boundary:
            state.open_boundaries.setdefault(node.boundary, []).append(depth)
            return node.body_start
        if node.encoding not in _IDENTITY_ENCODINGS or node.truncated:
            return node.body_start
        start = node.body_start


def _next_section(state: _ParserState) -> str:
    """Return the section of the next part as if it were no multipart.

    `_read_header` corrects the section of a multipart.
    """
    if not state.open_nodes:
        return "1"
    parent = state.open_nodes[-1]
    return f"{parent.child_prefix}{len(parent.children) + 1}"


def _read_header(state: _ParserState, node: _PartBuilder) -> None:
    """Parse the header of a part into its builder."""
    raw, start = state.raw, node.header_start
    header_end = _find_header_end(state, start)
    block_end, node.body_start = header_end.fields_end, header_end.body_start
    node.truncated = header_end.is_truncated
    last = find_fields_end(raw, start, block_end)
    if last < block_end:
        block_end = node.body_start = last
    fields = parse_fields_with_lowercase_names(raw[start:block_end])
    if not state.nodes:
        state.root_fields = fields
    parent = state.open_nodes[-1] if state.open_nodes else None
    if parent and parent.content_type == "multipart/digest":
        node.content_type = "message/rfc822"
    _apply_content_fields(node, fields)
    node.child_prefix = f"{node.section}."
    if node.content_type.startswith("multipart/"):
        if parent is None:
            node.section = node.child_prefix = ""
        elif parent.content_type in _MESSAGE_TYPES:
            node.section, node.child_prefix = f"{parent.section}.TEXT", parent.child_prefix


def _apply_content_fields(node: _PartBuilder, header_fields: list[RawField]) -> None:
    """Apply the Content-* fields; of equal names the first one counts."""
    content: dict[str, str] = {}
    for name, value in header_fields:
        if name.startswith("content-"):
            content.setdefault(name, value)
            if len(value) > MAX_PARAMETER_BYTES:
                node.truncated = True
    if "content-type" in content:
        _apply_content_type(node, unfold_and_decode_utf8(content["content-type"]))
    if "content-disposition" in content:
        kind, node.disposition_params = parse_value_and_parameters(
            unfold_and_decode_utf8(content["content-disposition"])
        )
        node.disposition = kind or None
    if node.params or node.disposition_params:
        node.filename = first_filename(
            node.disposition_params.get("filename"), node.params.get("name")
        )
    if "content-id" in content:
        node.content_id = (
            unfold_and_decode_utf8(content["content-id"]).strip("<> \t")[:_MAX_CONTENT_ID_LENGTH]
            or None
        )
    if "content-transfer-encoding" in content:
        node.encoding = _normalized_encoding(
            unfold_and_decode_utf8(content["content-transfer-encoding"])
        )
    if node.truncated:
        node.content_type, node.boundary = "application/octet-stream", b""


def _apply_content_type(node: _PartBuilder, value: str) -> None:
    """Set type, parameters and boundary of a part. An invalid type leaves the default type."""
    kind, node.params = parse_value_and_parameters(value)
    if _MEDIA_TYPE.fullmatch(kind):
        node.content_type = kind
    elif kind == "text":  # a value of the time before MIME
        node.content_type = "text/plain"
    if node.content_type.startswith("multipart/"):
        boundary = node.params.get("boundary", "").rstrip(" \t")
        node.boundary = boundary.encode("utf-8", "replace")


def _normalized_encoding(value: str) -> str:
    name = value.partition(";")[0].partition("(")[0].strip().strip("\"'").lower()
    return _ENCODING_ALIASES.get(name, name)


class _HeaderEnd(NamedTuple):
    """The end of a header block, as offsets."""

    fields_end: int
    body_start: int
    is_truncated: bool = False  # the header is longer than MAX_HEADER_BYTES


def _find_header_end(state: _ParserState, start: int) -> _HeaderEnd:
    """Find the end of the header block that begins at `start`.

    A boundary line ends a header block too: parts without a blank line are common.
    """
    raw = state.raw
    if start >= len(raw):
        return _HeaderEnd(len(raw), len(raw))
    blank = _BLANK_LINE.match(raw, start)
    if blank:
        return _HeaderEnd(start, blank.end())
    limit = min(len(raw), start + MAX_HEADER_BYTES)
    if not state.open_boundaries and (plain := _find_uniform_header_end(raw, start, limit)):
        return _HeaderEnd(*plain)
    at, until = max(start - 1, 0), start
    while until < limit:
        until = min(limit, 4 * until - 3 * start + _HEADER_SEARCH_BYTES)
        # A little more than the window, or a line end cut in two would look like another one.
        while edge := _BLANK_OR_DASHES.search(raw, at, min(until + 4, limit)):
            if edge.start() >= until:
                break
            at = edge.start() + 1
            if edge.group("lf") is None and edge.group("cr") is None:
                return _HeaderEnd(at, edge.end())
            if state.open_boundaries and _delimiter_at(state, at - 1):
                return _HeaderEnd(at, at)
        at = max(at, until)
    return _HeaderEnd(limit, limit, limit < len(raw))


def _find_uniform_header_end(raw: bytes, start: int, limit: int) -> tuple[int, int] | None:
    """Find the blank line quickly if all line ends are of one kind, else return None."""
    search_end = min(limit, start + 16 * _HEADER_SEARCH_BYTES)
    first = raw.find(b"\n", start, search_end)
    if first <= start:
        return None
    if raw[first - 1] == _CR:
        end = raw.find(b"\r\n\r\n", start, search_end) + 2
        text = raw[start:end]
        is_plain = end > 1 and text.count(b"\n") == text.count(b"\r") == text.count(b"\r\n")
        return (end, end + 2) if is_plain else None
    end = raw.find(b"\n\n", start, search_end) + 1
    return (end, end + 1) if end and raw.find(b"\r", start, end) < 0 else None


def _next_delimiter(state: _ParserState, start: int) -> _Delimiter | None:
    """Return the next boundary line of any open multipart, None if there is none."""
    raw = state.raw
    start = max(start - 1, 0)
    while True:
        if state.has_bare_cr:
            dashes = _DASHES.search(raw, start)
            start = dashes.start() if dashes else -1
        else:
            start = raw.find(b"\n--", start)
        if start < 0:
            return None
        delimiter = _delimiter_at(state, start)
        if delimiter:
            return delimiter
        start += 1


def _delimiter_at(state: _ParserState, line_end: int) -> _Delimiter | None:
    """Return the delimiter in the line after `line_end`, which begins with two hyphens."""
    line = _REST_OF_LINE.match(state.raw, line_end + 3)
    if line is None:
        return None
    text = line.group(1).rstrip(b" \t")
    indexes = state.open_boundaries.get(text)
    closes = False
    if indexes is None and text.endswith(b"--"):
        indexes, closes = state.open_boundaries.get(text[:-2]), True
    if not indexes:
        return None
    return _Delimiter(line_end, line.end(), indexes[-1], closes)


def _close_parts_inside(state: _ParserState, delimiter: _Delimiter) -> None:
    """Close the open parts inside of the multipart of a delimiter."""
    raw, stack = state.raw, state.open_nodes
    end = delimiter.start
    if raw[end : end + 1] == b"\n" and end and raw[end - 1 : end] == b"\r":
        end -= 1
    while len(stack) > delimiter.stack_index + 1:
        _remove_boundary(state, len(stack) - 1)
        node = stack.pop()
        end = max(end, node.body_start)  # a header may end only at the delimiter itself
        node.body_end = end


def _remove_boundary(state: _ParserState, stack_index: int) -> None:
    """Forget the boundary of a multipart that ends."""
    boundary = state.open_nodes[stack_index].boundary
    indexes = state.open_boundaries.get(boundary)
    if indexes and indexes[-1] == stack_index:
        indexes.pop()
        if not indexes:
            del state.open_boundaries[boundary]


def _add_opaque_rest(state: _ParserState, start: int) -> None:
    """Add the rest of the message as one opaque part."""
    end = len(state.raw)
    node = _PartBuilder(
        _next_section(state), start, start, end, "application/octet-stream", truncated=True
    )
    state.open_nodes[-1].children.append(len(state.nodes))
    state.nodes.append(node)


def _build_tree(state: _ParserState) -> ParsedPart:
    """Build the tree from its leaves up. Children come after their parents in the list."""
    nodes = state.nodes
    nodes[0].truncated = any(node.truncated for node in nodes)
    lines = _count_lines(state)
    parts: dict[int, ParsedPart] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        parts[index] = ParsedPart(
            section=node.section,
            content_type=node.content_type,
            header_start=node.header_start,
            body_start=node.body_start,
            body_end=node.body_end,
            params=node.params,
            disposition=node.disposition,
            disposition_params=node.disposition_params,
            filename=node.filename,
            content_id=node.content_id,
            encoding=node.encoding,
            parts=tuple([parts.pop(child) for child in node.children]),
            lines=lines.get(index),
            truncated=node.truncated,
        )
    return parts[0]


def _count_lines(state: _ParserState) -> dict[int, int]:
    """Count the lines of text and message parts in one pass over the bytes.

    Messages can be nested: counting each one alone would take time by their depth.
    """
    counted = {
        index: node
        for index, node in enumerate(state.nodes)
        if node.content_type.startswith(("text/", "message/"))
    }
    offsets = {node.body_start for node in counted.values()}
    offsets.update(node.body_end for node in counted.values())
    upto: dict[int, int] = {}
    before = total = 0
    for offset in sorted(offsets):
        total += state.raw.count(b"\n", before, offset)
        upto[offset] = total
        before = offset
    return {index: upto[node.body_end] - upto[node.body_start] for index, node in counted.items()}
