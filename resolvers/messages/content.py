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
from mail.mime import DecodedField, MemorySource, ParsedCalendarEvent, ParsedPart
from mail.storage.blobs.large_layout import COPIES_PER_READ, READ_MEMORY, LazyMessageLayout
from mail.storage.blobs.message_layout import MessageLayout
from mail.storage.message_content import (
    StoredMessage,
    read_all,
)
from mail.storage.message_open import (
    SELECT_LAYOUT_BLOB,
    layout_of_row,
    open_layouts,
    read_layout_blobs,
)
from mail.storage.message_structure import THREAD_THRESHOLD, read_structure
from models.errors import Forbidden, InvalidInput, LimitReached
from models.messages.tables import Message
from models.runtime.options import MIB
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import can_see_mail_of_others, is_own_prepared, is_visible_or_managed
from resolvers.context import Context
from resolvers.messages.content_access import (
    RowWithoutContent,
    content_refusal,
    withhold_content_or_log_read,
)

SOURCE_COLUMNS = (
    "attachments", "blob_id", "digest", "id", "mailbox_id", "structure", "subject", "user_id",
)  # fmt: skip
UNFILED_SOURCE_COLUMNS = frozenset(SOURCE_COLUMNS) - {
    "mailbox_id"
}  # of messages that are in no mailbox
TREE_MEMORY_FACTOR = 10  # bytes in memory for each stored byte of a MIME tree
OBJECT_BYTES = 100  # the approximate size of a Python object
MAX_RESPONSE_BYTES = 16 * MIB  # bytes of a message or part in one response
TEXT_SECTION = "TEXT"  # the section of a part that has no number in IMAP

Computed = TypeVar("Computed")

_SECTION = re.compile(r"((?:[0-9]{1,9}\.)*)(HEADER|TEXT|MIME)", re.IGNORECASE)
_UTF8_CONTINUATION, _UTF8_LEADING = 0x80, 0xC0  # bits of UTF-8 bytes


async def load_stored_messages(
    ctx: Context, message_ids: list[int]
) -> list[StoredMessage | Forbidden | None]:
    """Load the content of these messages, in this order. None if a message is not found.

    Returns the viewer's own messages and shared ones. For messages of others, an administrator gets
    the refusal, which a loader raises, and reads by ROOT are logged: see
    `resolvers/messages/content_access.py`. Raises Forbidden without the scope MAIL_READ, so that no
    operation of another scope reads stored mail.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    refused: dict[int, Forbidden] = {}
    if len(message_ids) == 1 and not can_see_mail_of_others(ctx):
        rows = await ctx.read_prepared(_own_message_query(), id=message_ids[0])
    else:
        statement = select(*select_columns(Message, SOURCE_COLUMNS)).where(
            is_visible_or_managed(ctx, Message)
        )
        readable_rows = await withhold_content_or_log_read(
            ctx, await ctx.read(statement.where(col(Message.id).in_(message_ids)))
        )
        rows = [row for row in readable_rows if not isinstance(row, RowWithoutContent)]
        refused = {
            row.id: content_refusal() for row in readable_rows if isinstance(row, RowWithoutContent)
        }
    found = {each.row.id: each for each in await _open_messages(ctx, rows)}
    return [found.get(key) or refused.get(key) for key in message_ids]


async def load_stored_message(ctx: Context, message_id: int) -> StoredMessage | None:
    """Load the content of a message as `load_stored_messages` does. Raises the refusal."""
    message = await ctx.load(load_stored_messages, message_id)
    if isinstance(message, Forbidden):
        raise message
    return message


@prepare_cached
def _own_message_query() -> Select[*tuple[Any, ...]]:
    is_own_message = is_own_prepared(Message), col(Message.id) == integer_parameter("id")
    return select(*select_columns(Message, SOURCE_COLUMNS)).where(*is_own_message)


async def _open_messages(ctx: Context, rows: Sequence[ColumnRow]) -> list[StoredMessage]:
    """Open the content of these rows, from the cache or with one statement."""
    environment = ctx.environment
    cached_sources = {
        row.id: environment.byte_cache.get(("source", *_source_key(row))) for row in rows
    }
    missing = [row for row in rows if cached_sources[row.id] is None]
    if len(missing) == 1:
        blobs = await ctx.read_prepared(SELECT_LAYOUT_BLOB, blob=missing[0].blob_id)
    else:
        blobs = await read_layout_blobs(missing, ctx.read)
    opened = await open_layouts(environment, blobs) if missing else {}
    for row in missing:
        skeleton, tree = cached_sources[row.id] = (
            layout_of_row(row, opened),
            await read_structure(row),
        )
        if isinstance(skeleton, MessageLayout):
            size = skeleton.memory_size + len(row.structure) * TREE_MEMORY_FACTOR
            environment.byte_cache.put(("source", *_source_key(row)), (skeleton, tree), size)
    return [
        StoredMessage(
            row,
            tree,
            skeleton,
            environment.object_store,
            ctx.read,
            environment.byte_cache,
            count_bytes_read=ctx.charge_bytes,
        )
        for row in rows
        for skeleton, tree in (cached_sources[row.id],)
    ]


def _source_key(row: ColumnRow) -> tuple[int, bytes]:
    """Return the key of computed values of a message: its bytes, and the MIME tree we parsed."""
    return row.blob_id, row.structure


async def compute_cached(
    message: StoredMessage, cache_key: Hashable, compute: Callable[[], Awaitable[Computed]]
) -> Computed:
    """Return a computed value of a message from the cache, or compute and cache it."""
    key = (cache_key, *_source_key(message.row))

    async def load_or_compute() -> tuple[Computed]:
        found: tuple[Computed] | None = message.cached_results.get(key)
        if found is None:
            found = (await compute(),)
            message.cached_results.put(key, found, _memory_size(found[0]))
        return found

    return (await message.share(key, load_or_compute))[0]


def _memory_size(value: object) -> int:
    """Return about how many bytes of memory a value uses."""
    if isinstance(value, list):
        return OBJECT_BYTES + sum(map(_memory_size, value))
    if isinstance(value, ParsedCalendarEvent):
        texts = value.uid, value.summary, value.location, value.organizer
        return (
            10 * OBJECT_BYTES + 2 * OBJECT_BYTES * len(value.attendees) + sum(map(getsizeof, texts))
        )
    if isinstance(value, DecodedField):  # a message has thousands: this is faster than getsizeof
        return 4 * OBJECT_BYTES + len(value.key) + len(value.value) + len(value.raw)
    return getsizeof(value)


async def plain_text(message: StoredMessage) -> str | None:
    """Return the plain text, converted from HTML if needed. None if the message has no body."""

    def extract_text() -> Awaitable[str | None]:
        return message.examine(lambda source: mime.body_text(source, message.structure))

    return await compute_cached(message, "text", extract_text)


@dataclass(frozen=True, slots=True)
class HtmlOptions:
    """How HTML is prepared. `url_of_content_id` returns the URL for a Content-ID, or None."""

    url_of_content_id: Callable[[str], str | None]
    is_sanitized: bool = True
    allows_remote_images: bool = False


@dataclass(frozen=True, slots=True)
class HtmlBodies:
    """The HTML of a message, one text for each displayed part."""

    bodies: tuple[str, ...]
    blocked_image_count: int = 0  # removed remote images
    is_too_complex: bool = False  # one part was reduced to its text


async def html_bodies(message: StoredMessage, options: HtmlOptions) -> HtmlBodies:
    """Return the HTML of a message; sanitized unless the options say otherwise."""
    cache_key = ("html", options.is_sanitized, options.allows_remote_images)
    return await message.share(cache_key, partial(_extract_html, message, options))


async def _extract_html(message: StoredMessage, options: HtmlOptions) -> HtmlBodies:
    key = ("html", options.allows_remote_images, *_source_key(message.row))
    found: HtmlBodies | None = message.cached_results.get(key) if options.is_sanitized else None
    if found:
        return found
    bodies = await message.examine(lambda source: mime.body_html_parts(source, message.structure))
    if not options.is_sanitized:
        return HtmlBodies(tuple(bodies))
    clean = HtmlSanitizer(options)
    if sum(map(len, bodies)) < THREAD_THRESHOLD:
        sanitized = clean(bodies)
    else:
        sanitized = await asyncio.to_thread(clean, bodies)
    if not clean.has_written_urls:  # our URLs depend on the viewer and the time
        message.cached_results.put(
            key, sanitized, OBJECT_BYTES + sum(map(_memory_size, sanitized.bodies))
        )
    return sanitized


@dataclass(frozen=True, slots=True)
class BodyPartContent:
    """A part that is shown as the body, with its decoded text."""

    section: str
    content_type: str
    content: str


async def body_parts(message: StoredMessage, options: HtmlOptions) -> list[BodyPartContent]:
    """Return the parts that are shown as the body, with all alternatives. HTML is sanitized."""
    parts = mime.shown_body_parts(message.structure)
    texts = await message.examine(lambda source: [mime.part_text(source, part) for part in parts])
    html_texts = [
        text for part, text in zip(parts, texts, strict=True) if part.content_type == "text/html"
    ]
    clean = HtmlSanitizer(options)
    if sum(map(len, html_texts)) < THREAD_THRESHOLD:
        sanitized = iter(clean(html_texts).bodies)
    else:
        sanitized = iter((await asyncio.to_thread(clean, html_texts)).bodies)
    return [
        BodyPartContent(
            section_of_part(part),
            part.content_type,
            next(sanitized) if part.content_type == "text/html" else text,
        )
        for part, text in zip(parts, texts, strict=True)
    ]


@dataclass(slots=True)
class HtmlSanitizer:
    """It sanitizes HTML, and records whether it wrote our URLs into it."""

    options: HtmlOptions
    has_written_urls: bool = False

    def __call__(self, bodies: list[str]) -> HtmlBodies:
        """Return the sanitized HTML."""
        images = self.options.allows_remote_images
        sanitized = [
            mime.sanitize_html(
                body, allow_remote_images=images, url_for_content_id=self._url_of_content_id
            )
            for body in bodies
        ]
        return HtmlBodies(
            tuple(each.html for each in sanitized),
            sum(each.blocked_images for each in sanitized),
            any(each.too_complex for each in sanitized),
        )

    def _url_of_content_id(self, content_id: str) -> str | None:
        self.has_written_urls = True
        return self.options.url_of_content_id(content_id)


def attachment_numbers_by_content_id(message: StoredMessage) -> dict[str, int]:
    """Return the attachment numbers that HTML can show, by Content-ID.

    The first of several counts.
    """
    found: dict[str, int] = {}
    for index, attachment in enumerate(message.row.attachments):
        if attachment["content_id"]:
            found.setdefault(attachment["content_id"], index)
    return found


async def header_fields(message: StoredMessage) -> list[DecodedField]:
    """Return the header fields in order."""

    def parse_header_fields() -> Awaitable[list[DecodedField]]:
        return message.examine(lambda source: mime.decoded_fields(source, message.structure))

    return await compute_cached(message, "headers", parse_header_fields)


async def header_values(message: StoredMessage, name: str) -> list[str]:
    """Return the values of all fields with this name, in order, unfolded and decoded."""
    fields = await header_fields(message)
    return [field.value for field in fields if field.key.lower() == name.lower()]


async def header_block_text(message: StoredMessage) -> str:
    """Return the header block as stored, up to the body."""
    start, end = message.structure.header_start, message.structure.body_start

    async def read_header_block() -> str:
        block = await read_range(message, start, end)
        return _decode_utf8_or_none(block) or block.decode("latin-1")

    return await message.share("header block", read_header_block)


async def imap_body_section(
    message: StoredMessage, section: str, *, offset: int = 0, max_bytes: int | None = None
) -> str | None:
    """Return BODY[section] of IMAP (RFC 9051, section 6.4.5); as base64 if it is not UTF-8.

    Sections are numbers, HEADER, TEXT and MIME, and "" for the whole message. None if there is no
    such part. Raises LimitReached above 16 MiB unless `max_bytes` is given, and InvalidInput.
    """
    span = _section_range(message, section)
    if span is None:
        return None
    start, end = span
    start = min(start + _validate_offset(offset), end)
    if max_bytes is None:
        _require_response_size(end - start, "section")
        return await _text_of_range(message, start, end)
    last = min(start + _validate_max_bytes(max_bytes), end)
    return await _text_of_range(message, start, last, is_truncated=last < end)


async def _text_of_range(
    message: StoredMessage, start: int, end: int, *, is_truncated: bool = False
) -> str:
    async def read_text() -> str:
        return _text_or_base64(await read_range(message, start, end), is_truncated=is_truncated)

    return await message.share(("range", start, end, is_truncated), read_text)


async def base64_part(message: StoredMessage, section: str) -> str | None:
    """Return the decoded content of a part as base64. None if there is no such part."""
    part = part_by_section(message, section)
    if part is None:
        return None

    async def decode_part() -> str:
        async with READ_MEMORY.reserve(part.size * COPIES_PER_READ):
            content = await message.open_part(part)
            _require_response_size(content.size, "section")
            decoded = await read_all(content.stream(0, content.size))
            return base64.b64encode(decoded).decode()

    return await message.share(("binary", section), decode_part)


async def message_source_text(message: StoredMessage, max_bytes: int = MIB, offset: int = 0) -> str:
    """Return a range of the message as received; as base64 if it is not UTF-8.

    `offset` and `max_bytes` count bytes. Raises InvalidInput if one is out of range.
    """
    start = _validate_offset(offset)
    end = start + _validate_max_bytes(max_bytes)
    return await _text_of_range(message, start, end, is_truncated=end < message.size)


async def attachment_text(message: StoredMessage, index: int, max_bytes: int = 65536) -> str | None:
    """Return the first bytes of an attachment as text. None if it is not text."""
    byte_limit, part = _validate_max_bytes(max_bytes), attachment_part(message, index)
    if part is None or not part.content_type.startswith("text/"):
        return None

    async def decode_attachment() -> str:
        async with READ_MEMORY.reserve(part.size * COPIES_PER_READ):
            content = await message.open_part(part)
            body = await read_all(content.stream(0, byte_limit))
            if byte_limit < content.size:
                body = _without_partial_character(body)
            # The content is decoded already; only its charset must be converted.
            alone = replace(part, header_start=0, body_start=0, body_end=len(body), encoding="8bit")
            return await asyncio.to_thread(mime.part_text, MemorySource(body), alone)

    return await message.share(("attachment", index, byte_limit), decode_attachment)


def attachment_part(message: StoredMessage, attachment_number: int) -> ParsedPart | None:
    """Return the part of an attachment, by its number from 0."""
    attachments: list[dict[str, Any]] = message.row.attachments
    if not 0 <= attachment_number < len(attachments):
        return None
    return mime.find_part(message.structure, attachments[attachment_number]["section"])


def part_by_section(message: StoredMessage, section: str) -> ParsedPart | None:
    """Return the part with this section. A multipart that is the whole message is "TEXT"."""
    if section == TEXT_SECTION:
        return message.structure
    return mime.find_part(message.structure, section) if section else None


def section_of_part(part: ParsedPart) -> str:
    """Return the section by which `part_by_section` finds this part."""
    return part.section or TEXT_SECTION


def _section_range(message: StoredMessage, section: str) -> tuple[int, int] | None:
    """Return start and end of an IMAP section in the message. None if there is no such part."""
    if section == "":
        return 0, message.size
    found = _SECTION.fullmatch(section)
    if not found:
        part = mime.find_part(message.structure, section)
        return (part.body_start, part.body_end) if part else None
    number, part_name = found.group(1)[:-1], found.group(2).upper()
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


async def read_range(message: StoredMessage, start: int, end: int) -> bytes:
    """Read the bytes of a message from one offset to another, for small ranges."""
    layout = message.layout
    holes = any(hole.start < end and hole.end > start for hole in layout.blob_spans)
    if holes or isinstance(layout, LazyMessageLayout):
        async with READ_MEMORY.reserve((min(end, message.size) - start) * COPIES_PER_READ):
            return await read_all(message.stream_raw(start, end))
    return layout.slice(start, end)


def _require_response_size(size: int, name: str) -> None:
    if size > MAX_RESPONSE_BYTES:
        text = f"it has more than {MAX_RESPONSE_BYTES} bytes: fetch them from its url"
        raise LimitReached(text, limit=MAX_RESPONSE_BYTES, used=size, path=[name])


def _validate_max_bytes(max_bytes: int) -> int:
    if not 0 < max_bytes <= MAX_RESPONSE_BYTES:
        text = f"between 1 and {MAX_RESPONSE_BYTES} bytes can be asked for"
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["maxBytes"])
    return max_bytes


def _validate_offset(offset: int) -> int:
    if offset < 0:
        raise InvalidInput(
            "counted from 0, and not from the end",
            constraint=ValidationConstraint.MIN,
            path=["offset"],
        )
    return offset


def _text_or_base64(content: bytes, *, is_truncated: bool = False) -> str:
    """Return UTF-8 as text, other bytes as base64.

    A partial last character of truncated bytes is removed.
    """
    text = _decode_utf8_or_none(_without_partial_character(content) if is_truncated else content)
    return base64.b64encode(content).decode() if text is None else text


def _decode_utf8_or_none(content: bytes) -> str | None:
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
