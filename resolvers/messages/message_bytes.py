"""Bytes of messages, MIME parts and attachments, as text or base64."""

import asyncio
import base64
import re
from dataclasses import replace
from typing import Any

from mail import mime
from mail.mime import MemorySource, ParsedPart
from mail.storage.blobs.large_layout import COPIES_PER_READ, READ_MEMORY, LazyMessageLayout
from mail.storage.blobs.message_layout import BlobSpan
from mail.storage.message_content import (
    StoredMessage,
    read_all,
)
from models.errors import InvalidInput, LimitReached
from models.runtime.options import MIB
from models.validation_constraints import ValidationConstraint

MAX_RESPONSE_BYTES = 16 * MIB  # bytes of a message or part in one response
TEXT_SECTION = "TEXT"  # the section of a part that has no number in IMAP
_SECTION = re.compile(r"((?:[0-9]{1,9}\.)*)(HEADER|TEXT|MIME)", re.IGNORECASE)
_UTF8_CONTINUATION, _UTF8_LEADING = 0x80, 0xC0  # bits of UTF-8 bytes


def find_attachment_part(message: StoredMessage, attachment_number: int) -> ParsedPart | None:
    """Return the part of an attachment, by its number from 0."""
    attachments: list[dict[str, Any]] = message.row.attachments
    if not 0 <= attachment_number < len(attachments):
        return None
    return mime.find_part(message.structure, attachments[attachment_number]["section"])


def find_part_by_section(message: StoredMessage, section: str) -> ParsedPart | None:
    """Return the part with this section. A multipart that is the whole message is "TEXT"."""
    if section == TEXT_SECTION:
        return message.structure
    return mime.find_part(message.structure, section) if section else None


def section_of_part(part: ParsedPart) -> str:
    """Return the section by which `find_part_by_section` finds this part."""
    return part.section or TEXT_SECTION


async def imap_body_section_as_text_or_base64(
    message: StoredMessage, section: str, *, offset: int = 0, max_bytes: int | None = None
) -> str | None:
    """Return BODY[section] of IMAP (RFC 9051, section 6.4.5); as base64 if it is not UTF-8.

    Sections are numbers, HEADER, TEXT and MIME, and "" for the whole message. None if there is no
    such part. Raises LimitReached above 16 MiB unless `max_bytes` is given, and InvalidInput.
    """
    span = _section_range(message, section)
    if span is None:
        return None
    start, end = min(span[0] + _validate_offset(offset), span[1]), span[1]
    if max_bytes is None:
        _require_response_size(end - start, "section")
        return await _text_or_base64_of_range(message, start, end)
    last = min(start + _validate_max_bytes(max_bytes), end)
    return await _text_or_base64_of_range(message, start, last, is_truncated=last < end)


async def _text_or_base64_of_range(
    message: StoredMessage, start: int, end: int, *, is_truncated: bool = False
) -> str:
    async def read_text() -> str:
        raw = await read_message_bytes(message, start, end)
        return _text_or_base64(raw, is_truncated=is_truncated)

    return await message.compute_shared_by_concurrent_callers(
        ("range", start, end, is_truncated), read_text
    )


async def mime_part_as_base64(message: StoredMessage, section: str) -> str | None:
    """Return the decoded content of a part as base64. None if there is no such part."""
    part = find_part_by_section(message, section)
    if part is None:
        return None

    async def decode_part_to_base64() -> str:
        async with READ_MEMORY.reserve(part.size * COPIES_PER_READ):
            content = await message.open_part(part)
            _require_response_size(content.size, "section")
            decoded = await read_all(content.stream(0, content.size))
            return base64.b64encode(decoded).decode()

    return await message.compute_shared_by_concurrent_callers(
        ("binary", section), decode_part_to_base64
    )


async def message_source_as_text_or_base64(
    message: StoredMessage, max_bytes: int = MIB, offset: int = 0
) -> str:
    """Return a range of the message as received; as base64 if it is not UTF-8.

    `offset` and `max_bytes` count bytes. Raises InvalidInput if one is out of range.
    """
    start = _validate_offset(offset)
    end = start + _validate_max_bytes(max_bytes)
    return await _text_or_base64_of_range(message, start, end, is_truncated=end < message.size)


async def attachment_text_beginning_or_none(
    message: StoredMessage, index: int, max_bytes: int = 65536
) -> str | None:
    """Return the first bytes of an attachment as text. None if it is not text."""
    byte_limit, part = _validate_max_bytes(max_bytes), find_attachment_part(message, index)
    if part is None or not part.content_type.startswith("text/"):
        return None

    async def decode_attachment() -> str:
        async with READ_MEMORY.reserve(part.size * COPIES_PER_READ):
            content = await message.open_part(part)
            body = await read_all(content.stream(0, byte_limit))
            if byte_limit < content.size:
                body = _without_partial_character(body)
            # The content is decoded already; only its charset must be converted.
            body_part = replace(
                part, header_start=0, body_start=0, body_end=len(body), encoding="8bit"
            )
            return await asyncio.to_thread(mime.part_text, MemorySource(body), body_part)

    return await message.compute_shared_by_concurrent_callers(
        ("attachment", index, byte_limit), decode_attachment
    )


def _section_range(message: StoredMessage, section: str) -> tuple[int, int] | None:
    """Return start and end of an IMAP section in the message. None if there is no such part."""
    if section == "":
        return 0, message.size
    match = _SECTION.fullmatch(section)
    if not match:
        part = mime.find_part(message.structure, section)
        return (part.body_start, part.body_end) if part else None
    number, part_name = match.group(1)[:-1], match.group(2).upper()
    part = mime.find_part(message.structure, number) if number else message.structure
    if part is None or (part_name == "MIME" and not number):
        return None
    if number and part_name != "MIME":  # a section of the attached message
        if not part.content_type.startswith("message/") or not part.parts:
            return None
        part = part.parts[0]
    if part_name == TEXT_SECTION:
        return part.body_start, part.body_end
    return part.header_start, part.body_start


async def read_message_bytes(message: StoredMessage, start: int, end: int) -> bytes:
    """Read the bytes of a message from one offset to another, for small ranges."""
    layout = message.layout
    has_blob = any(isinstance(entry, BlobSpan) for entry in layout.spans_between(start, end))
    if has_blob or isinstance(layout, LazyMessageLayout):
        async with READ_MEMORY.reserve((min(end, message.size) - start) * COPIES_PER_READ):
            return await read_all(message.stream_raw(start, end))
    return layout.slice(start, end)


def _require_response_size(size: int, name: str) -> None:
    if size > MAX_RESPONSE_BYTES:
        text = f"The field has more than {MAX_RESPONSE_BYTES} bytes: download them from `url`."
        raise LimitReached(text, limit=MAX_RESPONSE_BYTES, used=size, path=[name])


def _validate_max_bytes(max_bytes: int) -> int:
    if not 0 < max_bytes <= MAX_RESPONSE_BYTES:
        text = f"`maxBytes` must be from 1 to {MAX_RESPONSE_BYTES} bytes."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["maxBytes"])
    return max_bytes


def _validate_offset(offset: int) -> int:
    if offset < 0:
        raise InvalidInput(
            "`offset` must be at least 0.",
            constraint=ValidationConstraint.MIN,
            path=["offset"],
        )
    return offset


def _text_or_base64(content: bytes, *, is_truncated: bool = False) -> str:
    """Return UTF-8 as text, other bytes as base64.

    A partial last character of truncated bytes is removed.
    """
    text = decode_utf8_or_none(_without_partial_character(content) if is_truncated else content)
    return base64.b64encode(content).decode() if text is None else text


def decode_utf8_or_none(content: bytes) -> str | None:
    """Return the text of UTF-8 bytes; None if they are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _without_partial_character(content: bytes) -> bytes:
    """Return the bytes without the start of an incomplete UTF-8 character at their end."""
    for back in range(1, min(4, len(content) + 1)):
        byte = content[-back]
        if byte < _UTF8_CONTINUATION:
            break
        if byte >= _UTF8_LEADING:
            size = 2 + (byte >= 0xE0) + (byte >= 0xF0)  # noqa: PLR2004 - bits that say how long
            return content[:-back] if back < size else content
    return content
