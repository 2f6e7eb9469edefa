"""Values computed from a message's bytes or position, such as calendar events."""

import asyncio
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.mime import CalendarEvent, Facts, Part, Whole
from mail.mime.calendar_events import MOST_BYTES, MOST_EVENTS, unfolded
from mail.storage.blobs.message_layout import Gap
from mail.storage.message_content import CODED, Stored, gathered
from models.errors import LimitReached
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from resolvers.access import records
from resolvers.context import Context
from resolvers.messages.content import LONGEST, kept, ranged

ENVELOPES = ("message/rfc822", "message/global")  # content types of attached messages


class Holding(NamedTuple):
    """The digest of a stored body, and the number of messages that refer to it."""

    digest: str
    messages: int


@dataclass(frozen=True, slots=True)
class Attached:
    """A message attached to another one, with the facts of its header."""

    message: Stored
    part: Part  # the root of the attached message
    facts: Facts


async def positions(ctx: Context, ids: list[int]) -> list[int]:
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
        records(ctx, Message), col(Message.id).in_(ids)
    )
    found = {row.id: row.seq for row in await ctx.read(statement)}
    return [found.get(key, 0) for key in ids]


async def holdings(ctx: Context, blob_ids: list[int]) -> list[Holding]:
    """Load digest and message count of these blobs, in this order. Only for administrators."""
    many = func.count(col(MessageBlob.message_id))
    statement = (
        select(col(Blob.id), col(Blob.digest), many.label("messages"))
        .outerjoin(MessageBlob, col(MessageBlob.blob_id) == col(Blob.id))
        .where(col(Blob.id).in_(blob_ids))
        .group_by(col(Blob.id), col(Blob.digest))
    )
    found = {row.id: Holding(row.digest, row.messages) for row in await ctx.read(statement)}
    return [found.get(key, Holding("", 0)) for key in blob_ids]


async def virtual_size(message: Stored) -> int:
    """Return the size of a message in bytes if all its lines end with CRLF, as IMAP counts it."""
    return await kept(message, "virtual size", lambda: _virtual_size(message))


async def _virtual_size(message: Stored) -> int:
    bare, before = 0, b""
    for entry in message.layout.entries(0, message.size):
        if isinstance(entry, Gap) and entry.wrapping is not None:
            text = entry.end - entry.start
            wide, eol = entry.wrapping.width, entry.wrapping.eol
            bare += (text - 1) // (wide + 1) if eol == b"\n" else 0
            before = b""
            continue
        async for chunk in message.whole(entry.start, entry.end):
            bare += chunk.count(b"\n") - chunk.count(b"\r\n")
            bare -= chunk[:1] == b"\n" and before == b"\r"
            before = chunk[-1:]
    return message.size + bare


async def envelope_imap(message: Stored) -> str:
    """Return the ENVELOPE of IMAP (RFC 9051, section 7.5.2)."""

    async def make() -> str:
        return await message.examine(lambda source: mime.envelope_imap(source, message.structure))

    return await kept(message, "envelope", make)


async def bodystructure(message: Stored, *, extended: bool) -> str:
    """Return the BODYSTRUCTURE of IMAP, or BODY if not `is_extended`."""

    async def make() -> str:
        return await message.examine(
            lambda source: mime.bodystructure(source, message.structure, extended=extended)
        )

    return await kept(message, ("bodystructure", extended), make)


async def events(message: Stored) -> list[CalendarEvent]:
    """Return the distinct calendar events of a message. Reads at most 512 KiB of all calendars."""
    return await kept(message, "events", lambda: _found(message))


async def _found(message: Stored) -> list[CalendarEvent]:
    found: dict[CalendarEvent, None] = {}
    room = MOST_BYTES
    for part in mime.calendars(message.structure):
        if part.encoding in CODED and part.size > 2 * MOST_BYTES:
            continue  # decoding it could read all of it
        content = await message.opened(part)
        body = unfolded(await gathered(content.stream(0, min(content.size, room))))
        room -= min(content.size, room)
        alone = replace(part, header_start=0, body_start=0, body_end=len(body), encoding="8bit")
        found |= dict.fromkeys(await asyncio.to_thread(_events, body, alone))
    return list(found)[:MOST_EVENTS]


def _events(body: bytes, part: Part) -> list[CalendarEvent]:
    return mime.events(mime.text_of(Whole(body), part), part.params.get("method"))


async def attached(message: Stored, part: Part) -> Attached | None:
    """Return the message that a part holds. None if it holds none or can't be read."""
    if part.content_type not in ENVELOPES or not part.parts:
        return None
    inner = part.parts[0]
    head = await ranged(message, inner.header_start, inner.body_start)
    return Attached(message, inner, await mime.read(head))


async def attached_text(attached: Attached) -> str | None:
    """Return the plain text of an attached message. Raises LimitReached above 16 MiB."""
    message, part = attached.message, attached.part
    start, size = part.header_start, part.body_end - part.header_start
    if size > LONGEST:
        text = f"it has more than {LONGEST} bytes: fetch its parts from their urls"
        raise LimitReached(text, limit=LONGEST, used=size, path=["text"])

    async def make() -> str | None:
        raw = await ranged(message, start, part.body_end)
        return await asyncio.to_thread(_text, raw)

    return await message.share(("attached text", start), make)


def _text(raw: bytes) -> str | None:
    return mime.body_text(raw, mime.split(raw))
