"""Raw header fields, tag lists and canonical header forms for signatures (RFC 6376)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mail.authentication.body_canonicalization import with_crlf

MAX_HEADER_SIZE = 1 << 20  # bytes of a header; signatures of a larger one are not checked
MAX_LINES = 10_000  # of such a header
MAX_TAGS = 50  # of one field or record
WHITE_SPACE = " \t\r\n"

_CRLF = b"\r\n"
_FOLDED_LINE_END = re.compile(rb"\r\n(?=[ \t])")
_BLANK_RUN = re.compile(rb"[ \t]+")
_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_WHITE_SPACE_RUN = re.compile(r"[ \t\r\n]+")
_MBOX_PREFIXES = (b"From ", b">From ")  # first lines that some programs put before a header


class MalformedInput(Exception):
    """A header, signature field or DNS record with a syntax error."""


@dataclass(frozen=True)
class CanonicalField:
    """A header field with its raw bytes."""

    name: str  # in lower case
    raw: bytes  # with its folds and its CRLF

    @property
    def value(self) -> bytes:
        """The bytes after the colon, with folds."""
        return self.raw.partition(b":")[2]

    @cached_property
    def relaxed_form(self) -> bytes:
        """The field in the relaxed form, with CRLF; computed once."""
        value = _BLANK_RUN.sub(b" ", _FOLDED_LINE_END.sub(b"", self.value)).strip(b" \r\n")
        return self.name.encode() + b":" + value + _CRLF


def parse_well_formed_fields_and_crlf_body(raw: bytes) -> tuple[list[CanonicalField], bytes]:
    """Split a message into its fields, topmost first, and its body; both with CRLF line ends.

    Raises MalformedInput if a line of the header belongs to no field, since other programs
    could see another header.
    """
    head, body = split_header_and_body(raw)
    return parse_canonical_fields(head), with_crlf(body)


def parse_canonical_fields(header: bytes) -> list[CanonicalField]:
    """The fields of a header, topmost first. Raises MalformedInput; see `split_fields_and_body`."""
    if len(header) > MAX_HEADER_SIZE or header.count(b"\n") > MAX_LINES:
        raise MalformedInput("message header too large")
    # LF is a fold
    lines = _FOLDED_LINE_END.sub(b"\n", with_crlf(header)).removesuffix(_CRLF).split(_CRLF)
    if not header:
        lines = []
    fields = []
    for line in lines[1:] if header.startswith(_MBOX_PREFIXES) else lines:
        match = _NAME.match(line)
        if not match or b"\r" in line:
            raise MalformedInput("malformed header field")
        fields.append(CanonicalField(match[1].decode().lower(), line.replace(b"\n", _CRLF) + _CRLF))
    return fields


def read_header_and_body_offset(path: Path) -> tuple[bytes, int]:
    """Read the header of the message in a file; also return the offset of its body.

    A header over MAX_HEADER_SIZE bytes is cut a few bytes later, so that `parse_canonical_fields`
    refuses it.
    """
    with path.open("rb", buffering=0) as file:
        first = file.read(MAX_HEADER_SIZE + len(b"\r\n") + 1)
    head, rest = split_header_and_body(first)
    return head, len(first) - len(rest)


def split_header_and_body(raw: bytes) -> tuple[bytes, bytes]:
    """Split a message into its header with line ends, and the bytes after the empty line."""
    if raw.startswith((_CRLF, b"\n")):
        return b"", raw[raw.index(b"\n") + 1 :]
    header_ends = [(raw.find(line_end), len(line_end)) for line_end in (b"\n\r\n", b"\n\n")]
    at, size = min((end for end in header_ends if end[0] >= 0), default=(-1, 0))
    if at < 0:
        return raw, b""
    return raw[: at + 1], raw[at + size :]


def parse_tags(text: bytes) -> dict[str, str]:
    """The tags of a list such as `v=1; a=rsa-sha256`, in order (RFC 6376, section 3.2).

    Raises MalformedInput.
    """
    tags: dict[str, str] = {}
    parts = text.decode(errors="surrogateescape").split(";", MAX_TAGS)
    if not parts[-1].strip():
        parts.pop()
    for part in parts:
        name, separator, value = part.partition("=")
        name = name.strip(WHITE_SPACE)
        if not separator or not _TAG.fullmatch(name) or name in tags:
            raise MalformedInput("invalid tag list")
        tags[name] = value.strip(WHITE_SPACE)
    if len(tags) > MAX_TAGS:
        raise MalformedInput("too many tags")
    return tags


def without_white_space(text: str) -> str:
    """The text without white space, as base64 is decoded."""
    return _WHITE_SPACE_RUN.sub("", text)


def without_signature(field: CanonicalField) -> CanonicalField:
    """The field with an empty b=, as its signature was made."""
    name, separator, value = field.raw.partition(b":")
    parts = value.removesuffix(_CRLF).split(b";")
    for at, part in enumerate(parts):
        tag, sign, _ = part.partition(b"=")
        if tag.strip() == b"b":
            parts[at] = tag + sign
    return CanonicalField(field.name, name + separator + b";".join(parts) + _CRLF)


def fields_covered_by_signature(
    fields_by_name: Mapping[str, Sequence[CanonicalField]], names: Sequence[str]
) -> list[CanonicalField]:
    """The fields that a list of names signs; of equal names the last first (RFC 6376, 5.4.2)."""
    covered_fields, taken_counts = [], Counter[str]()
    for name in names:
        same_name_fields = fields_by_name.get(name, ())
        taken_counts[name] += 1
        if taken_counts[name] <= len(same_name_fields):
            covered_fields.append(same_name_fields[-taken_counts[name]])
    return covered_fields


def required_ascii_tag(field_tags: Mapping[str, str], name: str) -> str:
    """The value of a required tag. Raises MalformedInput if it is missing or not ASCII."""
    value = field_tags.get(name, "")
    if not value or not value.isascii():
        raise MalformedInput(f"missing tag {name}=")
    return value
