"""What is worked out of a message's bytes or place beyond its parts: invitations, its number."""

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

ENVELOPES = ("message/rfc822", "message/global")  # types of parts that are messages


class Holding(NamedTuple):
    """A stored body: the name it lies under, and how many messages need it."""

    digest: str
    messages: int


@dataclass(frozen=True, slots=True)
class Attached:
    """A message that is a part of another: what its header says, and where it lies."""

    message: Stored
    part: Part  # its own tree
    facts: Facts


async def positions(ctx: Context, ids: list[int]) -> list[int]:
    """The numbers of these messages in their folders, counted from 1 by uid, in this order."""
    other = aliased(Message)
    before = (
        select(func.count())
        .where(col(other.mailbox_id) == col(Message.mailbox_id), col(other.uid) <= col(Message.uid))
        .scalar_subquery()
    )
    asked = select(col(Message.id), before.label("seq")).where(
        records(ctx, Message), col(Message.id).in_(ids)
    )
    found = {row.id: row.seq for row in await ctx.read(asked)}
    return [found.get(key, 0) for key in ids]


async def holdings(ctx: Context, blob_ids: list[int]) -> list[Holding]:
    """The bodies with these keys, in this order; for administrators."""
    many = func.count(col(MessageBlob.message_id))
    asked = (
        select(col(Blob.id), col(Blob.digest), many.label("messages"))
        .outerjoin(MessageBlob, col(MessageBlob.blob_id) == col(Blob.id))
        .where(col(Blob.id).in_(blob_ids))
        .group_by(col(Blob.id), col(Blob.digest))
    )
    found = {row.id: Holding(row.digest, row.messages) for row in await ctx.read(asked)}
    return [found.get(key, Holding("", 0)) for key in blob_ids]


async def virtual_size(message: Stored) -> int:
    """The bytes of a message whose lines all end in CRLF, as IMAP counts them."""
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
    """ENVELOPE of IMAP (RFC 9051, section 7.5.2)."""

    async def make() -> str:
        return await message.examine(lambda source: mime.envelope_imap(source, message.structure))

    return await kept(message, "envelope", make)


async def bodystructure(message: Stored, *, extended: bool) -> str:
    """BODYSTRUCTURE of IMAP, or its BODY when not `extended`."""

    async def make() -> str:
        return await message.examine(
            lambda source: mime.bodystructure(source, message.structure, extended=extended)
        )

    return await kept(message, ("bodystructure", extended), make)


async def events(message: Stored) -> list[CalendarEvent]:
    """The events of the calendars in a message, each once; 512 KiB of all of them are read."""
    return await kept(message, "events", lambda: _found(message))


async def _found(message: Stored) -> list[CalendarEvent]:
    found: dict[CalendarEvent, None] = {}
    room = MOST_BYTES
    for part in mime.calendars(message.structure):
        if part.encoding in CODED and part.size > 2 * MOST_BYTES:
            continue  # it may have to be read whole
        content = await message.opened(part)
        body = unfolded(await gathered(content.stream(0, min(content.size, room))))
        room -= min(content.size, room)
        alone = replace(part, header_start=0, body_start=0, body_end=len(body), encoding="8bit")
        found |= dict.fromkeys(await asyncio.to_thread(_events, body, alone))
    return list(found)[:MOST_EVENTS]


def _events(body: bytes, part: Part) -> list[CalendarEvent]:
    return mime.events(mime.text_of(Whole(body), part), part.params.get("method"))


async def attached(message: Stored, part: Part) -> Attached | None:
    """The message that a part is; None where it is none, or cannot be read."""
    if part.content_type not in ENVELOPES or not part.parts:
        return None
    inner = part.parts[0]
    head = await ranged(message, inner.header_start, inner.body_start)
    return Attached(message, inner, await mime.read(head))


async def attached_text(attached: Attached) -> str | None:
    """The plain text of an attached message; LimitReached above 16 MiB."""
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
