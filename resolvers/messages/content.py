"""The content of stored messages: texts, header fields, parts and bytes.

They are read on request.
"""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from sys import getsizeof
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlmodel import col

from mail import mime
from mail.mime import CalendarEvent, Header, Part, Whole
from mail.storage.blobs.large_layout import COPIES, READING, Outline
from mail.storage.blobs.message_layout import Skeleton
from mail.storage.message_content import (
    LARGE,
    ROOT,
    Stored,
    gathered,
    read_tree,
    roots,
    skeleton_of,
    skeletons,
)
from models.errors import Forbidden, Invalid, LimitReached
from models.messages.tables import Message
from models.runtime.options import MIB
from models.store.columns import Picked, picked
from models.store.prepared_statements import number, prepared
from models.users.roles import Scope
from resolvers.access import beyond, owned, records
from resolvers.context import Context
from resolvers.messages.content_access import Withheld, refusal, shown

COLUMNS = (
    "attachments", "blob_id", "digest", "id", "mailbox_id", "structure", "subject", "user_id",
)  # fmt: skip
HELD = frozenset(COLUMNS) - {"mailbox_id"}  # of messages that are in no mailbox
TREE = 10  # bytes in memory for each stored byte of a MIME tree
OBJECT = 100  # the approximate size of a Python object
LONGEST = 16 * MIB  # bytes of a message or part in one response
WORD = "TEXT"  # the section of a part that has no number in IMAP

Made = TypeVar("Made")

_SECTION = re.compile(r"((?:[0-9]{1,9}\.)*)(HEADER|TEXT|MIME)", re.IGNORECASE)
_CONTINUED, _LEADING = 0x80, 0xC0  # bits of UTF-8 bytes


async def stored(ctx: Context, ids: list[int]) -> list[Stored | Forbidden | None]:
    """Load the content of these messages, in this order. None if a message is not found.

    Returns the viewer's own messages and shared ones. For messages of others, an administrator gets
    the refusal, which a loader raises, and reads by ROOT are logged: see
    `resolvers/messages/content_access.py`. Raises Forbidden without the scope MAIL_READ, so that no
    operation of another scope reads stored mail.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    refused: dict[int, Forbidden] = {}
    if len(ids) == 1 and not beyond(ctx):
        rows = await ctx.find(_by_id(), id=ids[0])
    else:
        statement = select(*picked(Message, COLUMNS)).where(records(ctx, Message))
        there = await shown(ctx, await ctx.read(statement.where(col(Message.id).in_(ids))))
        rows = [row for row in there if not isinstance(row, Withheld)]
        refused = {row.id: refusal() for row in there if isinstance(row, Withheld)}
    found = {each.row.id: each for each in await _opened(ctx, rows)}
    return [found.get(key) or refused.get(key) for key in ids]


async def one(ctx: Context, key: int) -> Stored | None:
    """Load the content of a message as `load_stored_messages` does. Raises the refusal."""
    message = await ctx.load(stored, key)
    if isinstance(message, Forbidden):
        raise message
    return message


@prepared
def _by_id() -> Select[*tuple[Any, ...]]:
    mine = owned(Message), col(Message.id) == number("id")
    return select(*picked(Message, COLUMNS)).where(*mine)


async def _opened(ctx: Context, rows: Sequence[Picked]) -> list[Stored]:
    """Open the content of these rows, from the cache or with one statement."""
    world = ctx.world
    known = {row.id: world.shelf.get(("source", *_bytes_of(row))) for row in rows}
    missing = [row for row in rows if known[row.id] is None]
    if len(missing) == 1:
        blobs = await ctx.find(ROOT, blob=missing[0].blob_id)
    else:
        blobs = await roots(missing, ctx.read)
    opened = await skeletons(world, blobs) if missing else {}
    for row in missing:
        skeleton, tree = known[row.id] = skeleton_of(row, opened), await read_tree(row)
        if isinstance(skeleton, Skeleton):
            size = skeleton.held + len(row.structure) * TREE
            world.shelf.put(("source", *_bytes_of(row)), (skeleton, tree), size)
    return [
        Stored(row, tree, skeleton, world.blobs, ctx.read, world.shelf, charge=ctx.charge)
        for row in rows
        for skeleton, tree in (known[row.id],)
    ]


def _bytes_of(row: Picked) -> tuple[int, bytes]:
    """Return the key of computed values of a message: its bytes, and the MIME tree we parsed."""
    return row.blob_id, row.structure


async def kept(message: Stored, how: Hashable, make: Callable[[], Awaitable[Made]]) -> Made:
    """Return a computed value of a message from the cache, or compute and cache it."""
    key = (how, *_bytes_of(message.row))

    async def made() -> tuple[Made]:
        found: tuple[Made] | None = message.shelf.get(key)
        if found is None:
            found = (await make(),)
            message.shelf.put(key, found, _size(found[0]))
        return found

    return (await message.share(key, made))[0]


def _size(thing: object) -> int:
    """Return about how many bytes of memory a value uses."""
    if isinstance(thing, list):
        return OBJECT + sum(map(_size, thing))
    if isinstance(thing, CalendarEvent):
        texts = thing.uid, thing.summary, thing.location, thing.organizer
        return 10 * OBJECT + 2 * OBJECT * len(thing.attendees) + sum(map(getsizeof, texts))
    if isinstance(thing, Header):  # a message has thousands: this is faster than getsizeof
        return 4 * OBJECT + len(thing.key) + len(thing.value) + len(thing.raw)
    return getsizeof(thing)


async def texts(message: Stored) -> str | None:
    """Return the plain text, converted from HTML if needed. None if the message has no body."""

    def make() -> Awaitable[str | None]:
        return message.examine(lambda source: mime.body_text(source, message.structure))

    return await kept(message, "text", make)


@dataclass(frozen=True, slots=True)
class Showing:
    """How HTML is prepared. `cid_url` returns the URL for a Content-ID, or None."""

    cid_url: Callable[[str], str | None]
    sanitize: bool = True
    remote_images: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """The HTML of a message, one text for each displayed part."""

    bodies: tuple[str, ...]
    blocked: int = 0  # removed remote images
    too_complex: bool = False  # one part was reduced to its text


async def htmls(message: Stored, showing: Showing) -> Shown:
    """Return the HTML of a message; sanitized unless the options say otherwise."""
    how = ("html", showing.sanitize, showing.remote_images)
    return await message.share(how, partial(_htmls, message, showing))


async def _htmls(message: Stored, showing: Showing) -> Shown:
    key = ("html", showing.remote_images, *_bytes_of(message.row))
    found: Shown | None = message.shelf.get(key) if showing.sanitize else None
    if found:
        return found
    bodies = await message.examine(lambda source: mime.body_html(source, message.structure))
    if not showing.sanitize:
        return Shown(tuple(bodies))
    clean = Cleaning(showing)
    if sum(map(len, bodies)) < LARGE:
        safe = clean(bodies)
    else:
        safe = await asyncio.to_thread(clean, bodies)
    if not clean.addressed:  # our URLs depend on the viewer and the time
        message.shelf.put(key, safe, OBJECT + sum(map(_size, safe.bodies)))
    return safe


@dataclass(slots=True)
class Cleaning:
    """It sanitizes HTML, and records whether it wrote our URLs into it."""

    showing: Showing
    addressed: bool = False

    def __call__(self, bodies: list[str]) -> Shown:
        """Return the sanitized HTML."""
        images = self.showing.remote_images
        safe = [mime.sanitize(body, remote_images=images, cid_url=self._cid_url) for body in bodies]
        return Shown(
            tuple(each.html for each in safe),
            sum(each.blocked for each in safe),
            any(each.too_complex for each in safe),
        )

    def _cid_url(self, cid: str) -> str | None:
        self.addressed = True
        return self.showing.cid_url(cid)


def cids(message: Stored) -> dict[str, int]:
    """Return the attachment numbers that HTML can show, by Content-ID.

    The first of several counts.
    """
    found: dict[str, int] = {}
    for index, attachment in enumerate(message.row.attachments):
        if attachment["cid"]:
            found.setdefault(attachment["cid"], index)
    return found


async def header_fields(message: Stored) -> list[Header]:
    """Return the header fields in order."""

    def make() -> Awaitable[list[Header]]:
        return message.examine(lambda source: mime.headers(source, message.structure))

    return await kept(message, "headers", make)


async def header(message: Stored, name: str) -> list[str]:
    """Return the values of all fields with this name, in order, unfolded and decoded."""
    fields = await header_fields(message)
    return [field.value for field in fields if field.key.lower() == name.lower()]


async def headers_text(message: Stored) -> str:
    """Return the header block as stored, up to the body."""
    start, end = message.structure.header_start, message.structure.body_start

    async def make() -> str:
        block = await ranged(message, start, end)
        return _plain(block) or block.decode("latin-1")

    return await message.share("header block", make)


async def body_part(
    message: Stored, section: str, *, offset: int = 0, max_bytes: int | None = None
) -> str | None:
    """Return BODY[section] of IMAP (RFC 9051, section 6.4.5); as base64 if it is not UTF-8.

    Sections are numbers, HEADER, TEXT and MIME, and "" for the whole message. None if there is no
    such part. Raises LimitReached above 16 MiB unless `max_bytes` is given, and InvalidInput.
    """
    span = _span(message, section)
    if span is None:
        return None
    start, end = span
    start = min(start + _begun(offset), end)
    if max_bytes is None:
        _check_size(end - start, "section")
        return await _range_text(message, start, end)
    last = min(start + _checked(max_bytes), end)
    return await _range_text(message, start, last, cut=last < end)


async def _range_text(message: Stored, start: int, end: int, *, cut: bool = False) -> str:
    async def make() -> str:
        return _text(await ranged(message, start, end), cut=cut)

    return await message.share(("range", start, end, cut), make)


async def binary_part(message: Stored, section: str) -> str | None:
    """Return the decoded content of a part as base64. None if there is no such part."""
    part = part_at(message, section)
    if part is None:
        return None

    async def make() -> str:
        async with READING.take(part.size * COPIES):
            content = await message.opened(part)
            _check_size(content.size, "section")
            decoded = await gathered(content.stream(0, content.size))
            return base64.b64encode(decoded).decode()

    return await message.share(("binary", section), make)


async def source_text(message: Stored, max_bytes: int = MIB, offset: int = 0) -> str:
    """Return a range of the message as received; as base64 if it is not UTF-8.

    `offset` and `max_bytes` count bytes. Raises InvalidInput if one is out of range.
    """
    start = _begun(offset)
    end = start + _checked(max_bytes)
    return await _range_text(message, start, end, cut=end < message.size)


async def attachment_text(message: Stored, index: int, max_bytes: int = 65536) -> str | None:
    """Return the first bytes of an attachment as text. None if it is not text."""
    most, part = _checked(max_bytes), attached(message, index)
    if part is None or not part.content_type.startswith("text/"):
        return None

    async def make() -> str:
        async with READING.take(part.size * COPIES):
            content = await message.opened(part)
            body = await gathered(content.stream(0, most))
            if most < content.size:
                body = _without_half(body)
            # The content is decoded already; only its charset must be converted.
            alone = replace(part, header_start=0, body_start=0, body_end=len(body), encoding="8bit")
            return await asyncio.to_thread(mime.text_of, Whole(body), alone)

    return await message.share(("attachment", index, most), make)


def attached(message: Stored, index: int) -> Part | None:
    """Return the part of an attachment, by its number from 0."""
    known: list[dict[str, Any]] = message.row.attachments
    if not 0 <= index < len(known):
        return None
    return mime.find(message.structure, known[index]["part"])


def part_at(message: Stored, section: str) -> Part | None:
    """Return the part with this section. A multipart that is the whole message is "TEXT"."""
    if section == WORD:
        return message.structure
    return mime.find(message.structure, section) if section else None


def section_of(part: Part) -> str:
    """Return the section by which `part_by_section` finds this part."""
    return part.section or WORD


def _span(message: Stored, section: str) -> tuple[int, int] | None:
    """Return start and end of an IMAP section in the message. None if there is no such part."""
    if section == "":
        return 0, message.size
    found = _SECTION.fullmatch(section)
    if not found:
        part = mime.find(message.structure, section)
        return (part.body_start, part.body_end) if part else None
    number, word = found.group(1)[:-1], found.group(2).upper()
    part = mime.find(message.structure, number) if number else message.structure
    if part is None or (word == "MIME" and not number):
        return None
    if number and word != "MIME":  # a section of the attached message
        if not part.content_type.startswith("message/") or not part.parts:
            return None
        part = part.parts[0]
    if word == WORD:
        return part.body_start, part.body_end
    return part.header_start, part.body_start


async def ranged(message: Stored, start: int, end: int) -> bytes:
    """Read the bytes of a message from one offset to another, for small ranges."""
    layout = message.layout
    holes = any(hole.start < end and hole.end > start for hole in layout.holes)
    if holes or isinstance(layout, Outline):
        async with READING.take((min(end, message.size) - start) * COPIES):
            return await gathered(message.whole(start, end))
    return layout.slice(start, end)


def _check_size(size: int, name: str) -> None:
    if size > LONGEST:
        text = f"it has more than {LONGEST} bytes: fetch them from its url"
        raise LimitReached(text, limit=LONGEST, used=size, path=[name])


def _checked(max_bytes: int) -> int:
    if not 0 < max_bytes <= LONGEST:
        text = f"between 1 and {LONGEST} bytes can be asked for"
        raise Invalid(text, constraint="max", path=["maxBytes"])
    return max_bytes


def _begun(offset: int) -> int:
    if offset < 0:
        raise Invalid("counted from 0, and not from the end", constraint="min", path=["offset"])
    return offset


def _text(content: bytes, *, cut: bool = False) -> str:
    """Return UTF-8 as text, other bytes as base64.

    A partial last character of truncated bytes is removed.
    """
    text = _plain(_without_half(content) if cut else content)
    return base64.b64encode(content).decode() if text is None else text


def _plain(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _without_half(content: bytes) -> bytes:
    """Return the bytes without the start of an incomplete UTF-8 character at their end."""
    for back in range(1, min(4, len(content) + 1)):
        byte = content[-back]
        if byte < _CONTINUED:
            break
        if byte >= _LEADING:
            size = 2 + (byte >= 0xE0) + (byte >= 0xF0)  # noqa: PLR2004 - bits that say how long
            return content[:-back] if back < size else content
    return content
