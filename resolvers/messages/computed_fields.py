"""Values computed from a message's bytes or position, such as calendar events."""

import asyncio
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.mime import MemorySource, MessageFacts, ParsedCalendarEvent, ParsedPart
from mail.mime.calendar_events import MAX_CALENDAR_BYTES, MAX_EVENTS, unfold_lines
from mail.mime.header_fields import MAX_HEADER_BYTES
from mail.mime.parser import parse_structure_and_fields
from mail.mime.reader_threads import MAX_THREAD_BYTES
from mail.storage.blobs.large_layout import COPIES_PER_READ, READ_MEMORY
from mail.storage.blobs.message_layout import BlobSpan
from mail.storage.message_content import DECODED_ENCODINGS, StoredMessage, read_all
from mail.storage.message_structure import is_large_structure
from models.errors import LimitReached
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from resolvers.access import is_visible_or_managed
from resolvers.context import Context
from resolvers.messages.content import compute_cached
from resolvers.messages.message_bytes import MAX_RESPONSE_BYTES, read_message_bytes

MESSAGE_CONTENT_TYPES = ("message/rfc822", "message/global")  # content types of attached messages


class BlobUse(NamedTuple):
    """The digest of a stored body, and the number of messages that refer to it."""

    digest: str
    message_count: int


@dataclass(frozen=True, slots=True)
class AttachedMessageContent:
    """A message attached to another one, with the facts of its header."""

    message: StoredMessage
    part: ParsedPart  # the root of the attached message; the part that contains it if encoded
    facts: MessageFacts
    is_encoded: bool = False  # in base64 or quoted-printable, so that its parts have no sections


async def load_sequence_numbers(ctx: Context, message_ids: list[int]) -> list[int]:
    """Load the sequence numbers of these messages, in this order.

    They count from 1 by UID; 0 if not found.
    """
    other = aliased(Message)
    before = (
        select(func.count())
        .where(col(other.mailbox_id) == col(Message.mailbox_id), col(other.uid) <= col(Message.uid))
        .scalar_subquery()
    )
    statement = select(col(Message.id), before.label("seq")).where(
        is_visible_or_managed(ctx, Message), col(Message.id).in_(message_ids)
    )
    sequence_numbers = {row.id: row.seq for row in await ctx.read(statement)}
    return [sequence_numbers.get(key, 0) for key in message_ids]


async def load_blob_uses(ctx: Context, blob_ids: list[int]) -> list[BlobUse]:
    """Load digest and message count of these blobs, in this order. Only for administrators."""
    use_count = func.count(col(MessageBlob.message_id))
    statement = (
        select(col(Blob.id), col(Blob.digest), use_count.label("messages"))
        .outerjoin(MessageBlob, col(MessageBlob.blob_id) == col(Blob.id))
        .where(col(Blob.id).in_(blob_ids))
        .group_by(col(Blob.id), col(Blob.digest))
    )
    uses_by_blob = {row.id: BlobUse(row.digest, row.messages) for row in await ctx.read(statement)}
    return [uses_by_blob.get(key, BlobUse("", 0)) for key in blob_ids]


async def crlf_size(message: StoredMessage) -> int:
    """Return the size of a message in bytes if all its lines end with CRLF, as IMAP counts it."""
    return await compute_cached(message, "virtual size", lambda: _compute_size_with_crlf(message))


async def _compute_size_with_crlf(message: StoredMessage) -> int:
    bare, before = 0, b""
    for entry in message.layout.spans_between(0, message.size):
        if isinstance(entry, BlobSpan) and entry.wrapping is not None:
            text = entry.end - entry.start
            line_width, eol = entry.wrapping.width, entry.wrapping.eol
            bare += (text - 1) // (line_width + 1) if eol == b"\n" else 0
            before = b""
            continue
        async for chunk in message.stream_raw(entry.start, entry.end):
            bare += chunk.count(b"\n") - chunk.count(b"\r\n")
            bare -= chunk[:1] == b"\n" and before == b"\r"
            before = chunk[-1:]
    return message.size + bare


async def imap_envelope(message: StoredMessage) -> str:
    """Return the ENVELOPE of IMAP (RFC 9051, section 7.5.2)."""

    async def build_envelope() -> str:
        return await message.run_on_source(
            lambda source: mime.imap_envelope(source, message.structure)
        )

    return await compute_cached(message, "envelope", build_envelope)


async def imap_bodystructure(message: StoredMessage, *, is_extended: bool) -> str:
    """Return the BODYSTRUCTURE of IMAP, or BODY if not `is_extended`."""

    async def build_bodystructure() -> str:
        return await message.run_on_source(
            lambda source: mime.imap_bodystructure(source, message.structure, extended=is_extended)
        )

    return await compute_cached(message, ("bodystructure", is_extended), build_bodystructure)


async def calendar_events(message: StoredMessage) -> list[ParsedCalendarEvent]:
    """Return the distinct calendar events of a message. Reads at most 512 KiB of all calendars."""
    return await compute_cached(message, "events", lambda: _read_calendar_events(message))


async def _read_calendar_events(message: StoredMessage) -> list[ParsedCalendarEvent]:
    events: dict[ParsedCalendarEvent, None] = {}
    room = MAX_CALENDAR_BYTES
    for part in mime.calendar_parts(message.structure):
        if part.encoding in DECODED_ENCODINGS and part.size > 2 * MAX_CALENDAR_BYTES:
            continue  # decoding it could read all of it
        content = await message.open_part(part)
        body = unfold_lines(await read_all(content.stream(0, min(content.size, room))))
        room -= min(content.size, room)
        body_part = replace(part, header_start=0, body_start=0, body_end=len(body), encoding="8bit")
        events |= dict.fromkeys(await asyncio.to_thread(_events_of_part, body, body_part))
    return list(events)[:MAX_EVENTS]


def _events_of_part(body: bytes, part: ParsedPart) -> list[ParsedCalendarEvent]:
    return mime.parse_events(mime.part_text(MemorySource(body), part), part.params.get("method"))


async def read_attached_message_or_none(
    message: StoredMessage, part: ParsedPart
) -> AttachedMessageContent | None:
    """Return the message that a part holds. None if it holds none or can't be read.

    If the outer message has many parts, a thread parses the header: callers read each part, and
    thousands of short jobs would stop the event loop and the deadline of the operation.
    """
    if part.content_type not in MESSAGE_CONTENT_TYPES:
        return None
    if not part.parts:
        return await _read_encoded_message_or_none(message, part)
    inner = part.parts[0]
    head = await read_message_bytes(message, inner.header_start, inner.body_start)
    if is_large_structure(message.row) and len(head) < MAX_THREAD_BYTES:
        facts = await asyncio.to_thread(mime.facts_from_message_bytes, head)
    else:
        facts = await mime.read_message_facts(head)
    return AttachedMessageContent(message, inner, facts)


async def _read_encoded_message_or_none(
    message: StoredMessage, part: ParsedPart
) -> AttachedMessageContent | None:
    """Return the message that a part holds in base64 or quoted-printable.

    RFC 2046, section 5.2.1, forbids the encoding, but mail programs write it. None if the content
    has no header fields, or is larger than 16 MiB.
    """
    if part.encoding not in DECODED_ENCODINGS or part.size > 2 * MAX_RESPONSE_BYTES:
        return None
    head = await _read_decoded_part(message, part, MAX_HEADER_BYTES)
    facts = await asyncio.to_thread(_facts_from_header_or_none, head)
    return AttachedMessageContent(message, part, facts, is_encoded=True) if facts else None


async def _read_decoded_part(message: StoredMessage, part: ParsedPart, max_bytes: int) -> bytes:
    """Return the first bytes of the decoded content of a part."""
    async with READ_MEMORY.reserve(part.size * COPIES_PER_READ):
        content = await message.open_part(part)
        return await read_all(content.stream(0, min(content.size, max_bytes)))


def _facts_from_header_or_none(beginning: bytes) -> MessageFacts | None:
    """Return the facts of the header of a message, None if it has no header fields."""
    structure, fields = parse_structure_and_fields(beginning)
    return mime.facts_from_message_bytes(beginning[: structure.body_start]) if fields else None


async def text_of_attached_message_or_none(attached: AttachedMessageContent) -> str | None:
    """Return the plain text of an attached message. Raises LimitReached above 16 MiB."""
    message, part = attached.message, attached.part
    start = part.body_start if attached.is_encoded else part.header_start
    size = part.body_end - start
    if size > MAX_RESPONSE_BYTES:
        text = (
            f"The field has more than {MAX_RESPONSE_BYTES} bytes: download the parts "
            "from their `url`."
        )
        raise LimitReached(text, limit=MAX_RESPONSE_BYTES, used=size, path=["text"])

    async def extract_text() -> str | None:
        if attached.is_encoded:
            raw = await _read_decoded_part(message, part, MAX_RESPONSE_BYTES)
        else:
            raw = await read_message_bytes(message, start, part.body_end)
        return await asyncio.to_thread(_plain_text, raw)

    return await message.compute_shared_by_concurrent_callers(
        ("attached text", start), extract_text
    )


def _plain_text(raw: bytes) -> str | None:
    return mime.body_text(raw, mime.parse_structure(raw))
