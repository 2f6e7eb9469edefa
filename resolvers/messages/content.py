"""The content of stored messages: texts, header fields, parts and bytes.

They are read on request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from sys import getsizeof
from typing import Any, TypeVar
from urllib.parse import unquote

from sqlalchemy import Select, select
from sqlmodel import col

from mail import mime
from mail.compose.message_draft import Priority
from mail.compose.priority_header import priority_from_header_fields
from mail.mime import DecodedField, ParsedCalendarEvent
from mail.storage.blobs.message_layout import MessageLayout
from mail.storage.message_content import (
    StoredMessage,
    content_cache_key,
)
from mail.storage.message_open import (
    SELECT_LAYOUT_BLOB,
    layout_of_row,
    open_layouts,
    read_layout_blobs,
)
from mail.storage.message_structure import THREAD_THRESHOLD, read_structure
from models.errors import Forbidden
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.roles import Scope
from resolvers.access import can_see_mail_of_others, is_own_prepared, is_visible_or_managed
from resolvers.context import Context
from resolvers.messages.content_access import (
    RowWithoutContent,
    content_refusal,
    withhold_content_or_log_read,
)
from resolvers.messages.message_bytes import (
    decode_utf8_or_none,
    read_message_bytes,
    section_of_part,
)

SOURCE_COLUMNS = (
    "attachments", "blob_id", "deleted_at", "sha256", "id", "mailbox_id", "mime_structure",
    "subject", "user_id",
)  # fmt: skip
# of messages that were never in a mailbox
UNFILED_SOURCE_COLUMNS = frozenset(SOURCE_COLUMNS) - {"deleted_at", "mailbox_id"}
TREE_MEMORY_FACTOR = 10  # bytes in memory for each stored byte of a MIME tree
OBJECT_BYTES = 100  # the approximate size of a Python object

Computed = TypeVar("Computed")


async def load_stored_messages_and_log_read(
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
    messages_by_id = {message.row.id: message for message in await _open_stored_messages(ctx, rows)}
    return [messages_by_id.get(key) or refused.get(key) for key in message_ids]


async def load_stored_message(ctx: Context, message_id: int) -> StoredMessage | None:
    """Load the content of a message as `load_stored_messages_and_log_read`. Raises the refusal."""
    message = await ctx.load(load_stored_messages_and_log_read, message_id)
    if isinstance(message, Forbidden):
        raise message
    return message


async def load_stored_message_unless_deleted(ctx: Context, message_id: int) -> StoredMessage | None:
    """Load the content of a message in a mailbox; None if it is deleted or not found.

    Raises the refusal of `load_stored_messages_and_log_read`.
    """
    message = await load_stored_message(ctx, message_id)
    return None if message is None or message.row.deleted_at is not None else message


@prepare_cached
def _own_message_query() -> Select[*tuple[Any, ...]]:
    is_own_message = is_own_prepared(Message), col(Message.id) == integer_parameter("id")
    return select(*select_columns(Message, SOURCE_COLUMNS)).where(*is_own_message)


async def _open_stored_messages(ctx: Context, rows: Sequence[ColumnRow]) -> list[StoredMessage]:
    """Open the content of these rows, from the cache or with one statement."""
    environment = ctx.environment
    cached_sources = {
        row.id: environment.byte_cache.get(_content_key("source", row)) for row in rows
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
            size = skeleton.memory_size + len(row.mime_structure) * TREE_MEMORY_FACTOR
            environment.byte_cache.put(_content_key("source", row), (skeleton, tree), size)
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


def _content_key(name: Hashable, row: ColumnRow) -> tuple[Hashable, ...]:
    """Return the key of a computed value of a message: its bytes, and the MIME tree we parsed."""
    return content_cache_key(row.blob_id, name, row.mime_structure)


async def compute_cached(
    message: StoredMessage, cache_key: Hashable, compute: Callable[[], Awaitable[Computed]]
) -> Computed:
    """Return a computed value of a message from the cache, or compute and cache it."""
    key = _content_key(cache_key, message.row)

    async def load_or_compute() -> tuple[Computed]:
        cached_result: tuple[Computed] | None = message.cached_results.get(key)
        if cached_result is None:
            cached_result = (await compute(),)
            message.cached_results.put(key, cached_result, _memory_size(cached_result[0]))
        return cached_result

    return (await message.compute_shared_by_concurrent_callers(key, load_or_compute))[0]


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
        return 4 * OBJECT_BYTES + len(value.name) + len(value.value) + len(value.raw)
    return getsizeof(value)


async def plain_text(message: StoredMessage) -> str | None:
    """Return the plain text, converted from HTML if needed. None if the message has no body."""

    def extract_text() -> Awaitable[str | None]:
        return message.run_on_source(lambda source: mime.body_text(source, message.structure))

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
    return await message.compute_shared_by_concurrent_callers(
        cache_key, partial(_extract_html, message, options)
    )


async def _extract_html(message: StoredMessage, options: HtmlOptions) -> HtmlBodies:
    key = _content_key(("html", options.allows_remote_images), message.row)
    html_bodies: HtmlBodies | None = (
        message.cached_results.get(key) if options.is_sanitized else None
    )
    if html_bodies:
        return html_bodies
    bodies = await message.run_on_source(
        lambda source: mime.body_html_parts(source, message.structure)
    )
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


async def body_part_contents(message: StoredMessage, options: HtmlOptions) -> list[BodyPartContent]:
    """Return the parts that are shown as the body, with all alternatives. HTML is sanitized."""
    parts = mime.shown_body_parts(message.structure)
    texts = await message.run_on_source(
        lambda source: [mime.part_text(source, part) for part in parts]
    )
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
            tuple(body.html for body in sanitized),
            sum(body.blocked_images for body in sanitized),
            any(body.too_complex for body in sanitized),
        )

    def _url_of_content_id(self, content_id: str) -> str | None:
        self.has_written_urls = True
        return self.options.url_of_content_id(content_id)


def attachment_numbers_by_content_id(message: StoredMessage) -> dict[str, int]:
    """Return the attachment numbers that HTML can show, by Content-ID.

    The first of several counts.
    """
    numbers: dict[str, int] = {}
    for index, attachment in enumerate(message.row.attachments):
        if attachment["content_id"]:
            numbers.setdefault(attachment["content_id"], index)
    return numbers


def attachment_number_of_cid_or_none(numbers: Mapping[str, int], cid: str) -> int | None:
    """Return the attachment number of a `cid:` URL, given without `cid:`.

    The URL can be percent-encoded (RFC 2392, section 2).
    """
    return numbers.get(cid, numbers.get(unquote(cid)))


async def header_fields(message: StoredMessage) -> list[DecodedField]:
    """Return the header fields in order."""

    def parse_header_fields() -> Awaitable[list[DecodedField]]:
        return message.run_on_source(lambda source: mime.decoded_fields(source, message.structure))

    return await compute_cached(message, "headers", parse_header_fields)


async def header_values(message: StoredMessage, name: str) -> list[str]:
    """Return the values of all fields with this name, in order, unfolded and decoded."""
    fields = await header_fields(message)
    return [field.value for field in fields if field.name.lower() == name.lower()]


async def message_priority(message: StoredMessage) -> Priority:
    """Return the priority that the sender gave the message in its header."""
    return priority_from_header_fields(await header_fields(message))


async def header_block_text(message: StoredMessage) -> str:
    """Return the header block as stored, up to the body."""
    start, end = message.structure.header_start, message.structure.body_start

    async def read_header_block() -> str:
        block = await read_message_bytes(message, start, end)
        return decode_utf8_or_none(block) or block.decode("latin-1")

    return await message.compute_shared_by_concurrent_callers("header block", read_header_block)
