"""The message as scripts see it, and its implementation for parsed MIME messages."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from mail.mime import (
    ByteSource,
    DecodedField,
    ParsedPart,
    decoded_content,
    decoded_fields,
    file_parts_outside_related,
    html_to_text,
    part_text,
    walk_parts,
)
from mail.mime.byte_source import read_range
from mail.mime.charsets import decode_text
from mail.sieve import limits

_MESSAGE_TYPES = ("message/rfc822", "message/global")
_DELIMITER = re.compile(r"\r?\n?--[^\r\n]*\Z")


@dataclass(frozen=True, slots=True)
class SieveEnvelope:
    """The SMTP envelope of a message; addresses have no angle brackets."""

    sender: str  # "" for none
    recipient: str


class SievePart(Protocol):
    """A MIME part of a message, or the whole message."""

    @property
    def size(self) -> int:
        """The bytes of the encoded body."""

    @property
    def fields(self) -> Sequence[DecodedField]:
        """The header fields in order."""

    @property
    def parts(self) -> Sequence["SievePart"]:
        """The child parts; for an attached message the message itself."""

    def text(self) -> str:
        """Return the beginning of the content as text; "" if it has child parts.

        HTML is converted to text. Only the first `limits.MAX_PART_BYTES` bytes are read.
        """


class SieveMessage(Protocol):
    """A message as scripts see it. Bodies are only read if a script needs them."""

    @property
    def size(self) -> int:
        """The bytes of the message."""

    @property
    def fields(self) -> Sequence[DecodedField]:
        """The header fields in order."""

    @property
    def root_part(self) -> SievePart:
        """The message as a part."""

    def raw_body(self) -> str:
        """Return the body as text, with its transfer encodings."""

    @property
    def texts(self) -> Sequence[str]:
        """Each text of the message; HTML is converted to text."""

    @property
    def has_attachment(self) -> bool:
        """True if it has files that do not belong to its HTML."""

    def contents_of_types(self, content_types: Sequence[str]) -> Iterator[str]:
        """Yield the content of each part with one of the types (RFC 5173, section 5.2).

        A type is "" for all, "text" or "text/html", in lower case.
        """


class _ParsedSievePart:
    """A part of a parsed message."""

    def __init__(self, raw: bytes | ByteSource, part: ParsedPart) -> None:
        self._raw, self._part = raw, part

    @property
    def size(self) -> int:
        return self._part.size

    @cached_property
    def fields(self) -> Sequence[DecodedField]:
        return decoded_fields(self._raw, self._part)

    @cached_property
    def parts(self) -> Sequence[SievePart]:
        return [_ParsedSievePart(self._raw, part) for part in self._part.parts]

    def text(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        part = self._part
        if part.parts:
            return ""
        part = replace(part, body_end=min(part.body_end, part.body_start + limits.MAX_PART_BYTES))
        if part.content_type.startswith("text/"):
            text = part_text(self._raw, part)
            return html_to_text(text) if part.content_type == "text/html" else text
        return decode_text(decoded_content(self._raw, part), part.params.get("charset"))


class ParsedSieveMessage:
    """A parsed MIME message."""

    def __init__(self, raw: bytes | ByteSource, structure: ParsedPart) -> None:
        self._raw, self._structure = raw, structure

    @property
    def size(self) -> int:
        """The bytes of the message."""
        return len(self._raw)

    @cached_property
    def fields(self) -> Sequence[DecodedField]:
        """The header fields in order."""
        return decoded_fields(self._raw, self._structure)

    @cached_property
    def root_part(self) -> SievePart:
        """The message as a part."""
        return _ParsedSievePart(self._raw, self._structure)

    def raw_body(self) -> str:
        """Return the body as text, with its transfer encodings."""
        return self._decode_range(self._structure.body_start, len(self._raw))

    @cached_property
    def texts(self) -> Sequence[str]:
        """Each text of the message; HTML is converted to text."""
        return list(self._texts())

    @cached_property
    def has_attachment(self) -> bool:
        """True if it has files that do not belong to its HTML."""
        return any(True for _ in file_parts_outside_related(self._structure))

    def _texts(self) -> Iterator[str]:
        for part in walk_parts(self._structure):
            if part.content_type.startswith("text/") and not part.parts:
                text = part_text(self._raw, part)
                yield html_to_text(text) if part.content_type == "text/html" else text

    def contents_of_types(self, content_types: Sequence[str]) -> Iterator[str]:
        """Yield the content of each part with one of the types (RFC 5173, section 5.2)."""
        searched_types = frozenset(content_types)
        for part in walk_parts(self._structure):
            types_of_part = {"", part.content_type, part.content_type.partition("/")[0]}
            if not searched_types.isdisjoint(types_of_part):
                yield self._content_of_part(part)

    def _content_of_part(self, part: ParsedPart) -> str:
        if part.parts and part.content_type in _MESSAGE_TYPES:
            inner = part.parts[0]
            return self._decode_range(inner.header_start, inner.body_start)
        if part.parts:  # the preamble and the epilogue
            before = self._decode_range(part.body_start, part.parts[0].header_start).rstrip("\r\n")
            behind = self._decode_range(part.parts[-1].body_end, part.body_end).lstrip("\r\n")
            return _DELIMITER.sub("", before) + behind.partition("\n")[2]
        if part.content_type.startswith("text/"):
            return part_text(self._raw, part)
        return decode_text(decoded_content(self._raw, part), part.params.get("charset"))

    def _decode_range(self, start: int, end: int) -> str:
        return decode_text(read_range(self._raw, start, end), "utf-8")
