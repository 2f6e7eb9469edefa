"""Readers of stored messages: their exact bytes, and the decoded content of their parts."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from mail.mime import ByteSource, MemorySource, ParsedPart
from mail.mime.base64_lines import WHITESPACE
from mail.mime.part_content import decode_transfer_encoding
from mail.storage.blobs import blob_reader
from mail.storage.blobs.base64_offsets import Base64LineOffsets
from mail.storage.blobs.blob_reader import MAX_CHUNK_SIZE
from mail.storage.blobs.damage_check import require_intact_blob
from mail.storage.blobs.errors import BytesInBlob, CorruptBlob
from mail.storage.blobs.large_layout import (
    COPIES_PER_READ,
    READ_MEMORY,
    LazyMessageLayout,
    LiteralReader,
)
from mail.storage.blobs.message_layout import BlobSpan, LiteralSpan, MessageLayout
from mail.storage.message_structure import THREAD_THRESHOLD
from models.errors import NotFound
from models.files.blobs import Blob, MessageBlob, SubmissionBlob
from models.messages.tables import Message
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.byte_cache import ByteCache
from models.store.columns import ColumnRow
from models.store.object_store import ObjectStoreProtocol
from models.submission.tables import Submission

log = logging.getLogger(__name__)

MAX_WHITE_SPACE = 64 * 1024  # bytes of white space that may surround the content of a part
DECODED_ENCODINGS = (
    "base64",
    "quoted-printable",
    "x-uuencode",
)  # with any other encoding the body is the content


class BlobOwnerQueries(NamedTuple):
    """The queries for a blob of an owner row by its `digest`, and for the owner row."""

    select_blob: Select[*tuple[Any, ...]]
    select_owner: Select[*tuple[Any, ...]]


def _blob_owner_queries(owner_id: Any, reference_owner_id: Any, blob_id: Any) -> BlobOwnerQueries:
    is_of_owner = reference_owner_id == bindparam("holder")
    has_digest = col(Blob.digest) == bindparam("digest")
    blob_rows = select(*blob_reader.COLUMNS).join_from(
        Blob, reference_owner_id.class_, blob_id == col(Blob.id)
    )
    return BlobOwnerQueries(
        blob_rows.where(is_of_owner, has_digest),
        select(owner_id).where(owner_id == bindparam("holder")),
    )


MESSAGE_QUERIES = _blob_owner_queries(Message.id, MessageBlob.message_id, col(MessageBlob.blob_id))
QUARANTINE_QUERIES = _blob_owner_queries(
    QuarantineItem.id, QuarantineBlob.item_id, col(QuarantineBlob.blob_id)
)
SUBMISSION_QUERIES = _blob_owner_queries(
    Submission.id, SubmissionBlob.submission_id, col(SubmissionBlob.blob_id)
)

ReadRows = Callable[[Select[*tuple[Any, ...]], Mapping[str, Any]], Awaitable[Sequence[ColumnRow]]]
ContentStream = AsyncGenerator[bytes]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PartContent:
    """The decoded content of a MIME part: its size, and its bytes between two offsets."""

    size: int
    stream: Callable[[int, int], ContentStream]
    check: Callable[[int, int], Awaitable[None]]  # raises CorruptBlob if those bytes are damaged


class SharedResult:
    """The result of one computation for all waiting callers; dropped with the last of them."""

    __slots__ = ("lock", "value", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.value: tuple[Any] | None = None
        self.waiting = 0


def ignore_bytes_read(_count: int) -> None:
    """Ignore the number of bytes read."""


CONTENT_KEY = "message content"  # the first part of the keys of `content_cache_key`


def content_cache_key(blob_id: int, *parts: Hashable) -> tuple[Hashable, ...]:
    """Return the key in the ByteCache of a value that was computed from the bytes of a message.

    The second part is the id of the blob with the message, which tells whose mail the value is.
    """
    return (CONTENT_KEY, blob_id, *parts)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A stored message. `row` has the columns that its reader selected.

    A layout of more than 1 MiB is a LazyMessageLayout: its bytes are read when they are needed,
    within the memory limit for all readers of the process. `count_bytes_read` is called with
    each number of bytes read.
    """

    row: ColumnRow
    structure: ParsedPart
    layout_or_error: MessageLayout | CorruptBlob
    _store: ObjectStoreProtocol
    _read_rows: ReadRows
    # results of earlier calls
    cached_results: ByteCache = field(default_factory=partial(ByteCache, 0))
    _queries: BlobOwnerQueries = MESSAGE_QUERIES
    count_bytes_read: Callable[[int], None] = ignore_bytes_read
    _shared: dict[Hashable, SharedResult] = field(default_factory=dict)

    @property
    def layout(self) -> MessageLayout:
        """The layout, perhaps without bytes. Raises CorruptBlob if it is lost or damaged."""
        if isinstance(self.layout_or_error, CorruptBlob):
            raise CorruptBlob(str(self.layout_or_error)) from self.layout_or_error
        return self.layout_or_error

    @property
    def size(self) -> int:
        """Bytes of the whole message."""
        return len(self.layout)

    async def compute_shared_by_concurrent_callers(
        self, key: Hashable, compute: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Return the result of `compute`; concurrent callers with this key share one result."""
        shared = self._shared.setdefault(key, SharedResult())
        shared.waiting += 1
        try:
            async with shared.lock:
                if shared.value is None:
                    shared.value = (await compute(),)
                result: Result = shared.value[0]
                return result
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._shared.pop(key, None)

    async def read_blob(self, digest: str) -> bytes:
        """Read and verify the content of a blob of this message."""
        return await blob_reader.read_and_verify_content(
            self._store, await self._require_blob_row(digest)
        )

    async def _require_blob_row(self, digest: str) -> ColumnRow:
        """Find the row of a blob.

        Raises CorruptBlob without it, and NotFound if the message is deleted.
        """
        for row in await self._read_rows(
            self._queries.select_blob, {"holder": self.row.id, "digest": digest}
        ):
            return row
        if await self._read_rows(self._queries.select_owner, {"holder": self.row.id}):
            raise CorruptBlob(f"The part {digest} of the message {self.row.id} is missing")
        raise NotFound(str(self.row.id))  # deleted while it was read

    async def stream_raw(self, start: int = 0, end: int | None = None) -> ContentStream:
        """Yield the exact bytes of the message from `start` to `end`, at most 256 KiB at once.

        However large the blobs in the range, few bytes of them are in memory. See
        `blob_reader.stream_content` for the verification.
        """
        end = self.size if end is None else min(end, self.size)
        self.count_bytes_read(max(0, end - start))
        layout = self.layout
        if isinstance(layout, LazyMessageLayout):
            literals = LiteralReader(self._store, layout, start, end)
        else:
            literals = None
        try:
            for entry in layout.spans_between(start, end):
                first, last = max(start, entry.start), min(end, entry.end)
                if isinstance(entry, BlobSpan):
                    stream = self._stream_blob_span(entry, first, last)
                elif literals is None:
                    stream = _stream_literal(layout, entry, first, last)
                else:
                    stream = literals.read_exactly(last - first)
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        yield chunk
        finally:
            if literals is not None:
                await literals.close()

    async def require_intact(self, start: int = 0, end: int | None = None) -> None:
        """Raise CorruptBlob if a blob between two offsets of the message is lost or damaged."""
        layout = self.layout
        entries = list(
            layout.spans_between(start, self.size if end is None else min(end, self.size))
        )
        if isinstance(layout, LazyMessageLayout) and any(
            isinstance(entry, LiteralSpan) for entry in entries
        ):
            await require_intact_blob(self._store, layout.blob)
        for entry in entries:
            if isinstance(entry, BlobSpan):
                await require_intact_blob(self._store, await self._require_span_blob(entry))

    async def _require_span_blob(self, blob_span: BlobSpan) -> ColumnRow:
        blob_row = await self._require_blob_row(blob_span.digest)
        if blob_row.size != blob_span.content_size:
            raise CorruptBlob(f"The content of {blob_span.digest} has another size")
        return blob_row

    async def _stream_blob_span(self, blob_span: BlobSpan, start: int, end: int) -> ContentStream:
        start, end = start - blob_span.start, end - blob_span.start
        blob_row = await self._require_span_blob(blob_span)
        if blob_span.wrapping is None:
            chunks = blob_reader.stream_content(self._store, blob_row, start, end)
        else:
            chunks = self._stream_base64(blob_span, blob_row, start, end)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _stream_base64(
        self, blob_span: BlobSpan, blob_row: ColumnRow, start: int, end: int
    ) -> ContentStream:
        """Yield the base64 text of a blob, from offset `start` of the text to `end`."""
        lines = Base64LineOffsets(blob_span)
        at, until = lines.quad_start_at_or_before(start), lines.quad_start_at_or_after(end)
        content = blob_reader.stream_content(
            self._store, blob_row, at // 4 * 3, min(until // 4 * 3, blob_row.size)
        )
        async with aclosing(content):
            rest = b""
            async for chunk in content:
                rest += chunk
                whole_size = len(rest) - len(rest) % 3
                text = lines.encode_from(rest[:whole_size], at)
                yield text[max(0, start - lines.text_offset(at)) : end - lines.text_offset(at)]
                at, rest = at + whole_size // 3 * 4, rest[whole_size:]
            if rest:  # the last quad, padded
                yield lines.encode_from(rest, at)[
                    max(0, start - lines.text_offset(at)) : end - lines.text_offset(at)
                ]

    async def run_on_source(
        self, function: Callable[[ByteSource], Result], *, in_thread: bool = False
    ) -> Result:
        """Return the result of `function`, which reads the raw message without its blobs.

        A large layout is examined in a thread, also if `in_thread` is true. If the function
        needs bytes of a blob, it runs again on the whole message.
        """
        layout = self.layout
        stored_size = self.size - sum(hole.end - hole.start for hole in layout.blob_spans)
        try:
            if isinstance(layout, LazyMessageLayout):
                self.count_bytes_read(stored_size)
                async with READ_MEMORY.reserve(stored_size * COPIES_PER_READ):
                    self.count_bytes_read(0)
                    skeleton = await layout.load(self._store)
                    return await asyncio.to_thread(function, skeleton)
            if stored_size < THREAD_THRESHOLD and not in_thread:
                return function(layout)
            return await asyncio.to_thread(function, layout)
        except BytesInBlob:
            async with READ_MEMORY.reserve(self.size * COPIES_PER_READ):
                raw = await read_all(self.stream_raw())
                return await asyncio.to_thread(function, MemorySource(raw))

    async def open_part(self, part: ParsedPart) -> PartContent:
        """The decoded content of a part, to be read in chunks.

        Base64 in regular lines and content without an encoding are read in chunks; other
        content is decoded in memory.
        """
        if part.encoding not in DECODED_ENCODINGS:
            begin, last = part.body_start, part.body_end
            return PartContent(
                part.size,
                self._unencoded_stream(part),
                lambda start, end: self.require_intact(begin + start, min(begin + end, last)),
            )
        if part.encoding == "base64" and (gap := await self._base64_span_of_whole_body(part)):
            return PartContent(gap.content_size, self._blob_stream(gap), self._blob_check(gap))
        body = await read_all(self.stream_raw(part.body_start, part.body_end))
        if len(body) < THREAD_THRESHOLD:
            return _content_in_memory(decode_transfer_encoding(body, part.encoding))
        return _content_in_memory(
            await asyncio.to_thread(decode_transfer_encoding, body, part.encoding)
        )

    async def _base64_span_of_whole_body(self, part: ParsedPart) -> BlobSpan | None:
        """The blob span that is the whole body of the part, apart from white space around it."""
        span: BlobSpan | None = None
        for entry in self.layout.spans_between(part.body_start, part.body_end):
            first, last = max(part.body_start, entry.start), min(part.body_end, entry.end)
            if isinstance(entry, LiteralSpan):
                if last - first > MAX_WHITE_SPACE or (
                    await read_all(self.stream_raw(first, last))
                ).strip(WHITESPACE):
                    return None
            elif span or entry.wrapping is None or (first, last) != (entry.start, entry.end):
                return None
            else:
                span = entry
        return span

    def _unencoded_stream(self, part: ParsedPart) -> Callable[[int, int], ContentStream]:
        def stream(start: int, end: int) -> ContentStream:
            end = min(part.body_start + end, part.body_end)
            return self.stream_raw(part.body_start + start, end)

        return stream

    def _blob_stream(self, blob_span: BlobSpan) -> Callable[[int, int], ContentStream]:
        async def stream(start: int, end: int) -> ContentStream:
            blob_row = await self._require_blob_row(blob_span.digest)
            async with aclosing(
                blob_reader.stream_content(self._store, blob_row, start, end)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk

        return stream

    def _blob_check(self, blob_span: BlobSpan) -> Callable[[int, int], Awaitable[None]]:
        async def check(_start: int, _end: int) -> None:
            await require_intact_blob(self._store, await self._require_span_blob(blob_span))

        return check

    async def read_part(self, part: ParsedPart) -> bytes:
        """Read the decoded content of a part."""
        return await read_all(self.stream_part(part))

    async def stream_part(
        self, part: ParsedPart, start: int = 0, end: int | None = None
    ) -> ContentStream:
        """Yield the decoded content of a part from `start` to `end`."""
        content = await self.open_part(part)
        last = content.size if end is None else min(end, content.size)
        async with aclosing(content.stream(start, last)) as chunks:
            async for chunk in chunks:
                yield chunk


async def run_on_message_sources_in_thread(
    messages: Sequence[StoredMessage], function: Callable[[int, ByteSource | None], Result]
) -> list[Result]:
    """Return the result of `function` for each message; it gets the index and the source.

    The source is None if the message is damaged. Messages in memory are examined together in
    one thread, others one by one.
    """
    outlines = [
        nth
        for nth, message in enumerate(messages)
        if isinstance(message.layout_or_error, LazyMessageLayout)
    ]
    stored_parts = [
        nth
        for nth, message in enumerate(messages)
        if not isinstance(message.layout_or_error, LazyMessageLayout)
    ]

    def examine_held() -> dict[int, Result]:
        return {nth: function(nth, _source_or_none(messages[nth])) for nth in stored_parts}

    results = await asyncio.to_thread(examine_held) if stored_parts else {}
    for nth in outlines:
        try:
            results[nth] = await messages[nth].run_on_source(partial(function, nth), in_thread=True)
        except CorruptBlob:  # logged when its layout was read, or by the next check
            results[nth] = await asyncio.to_thread(function, nth, None)
    return [results[nth] for nth in range(len(messages))]


def _source_or_none(message: StoredMessage) -> ByteSource | None:
    return None if isinstance(message.layout_or_error, CorruptBlob) else message.layout_or_error


def log_if_damaged(message: StoredMessage) -> None:
    """Log that the layout of a message is damaged, if it is."""
    if isinstance(message.layout_or_error, CorruptBlob):
        extra = {"blob": message.row.blob_id, "damage": str(message.layout_or_error)}
        log.warning("A stored message is damaged", extra=extra)


async def read_all(stream: ContentStream) -> bytes:
    """All bytes of a stream."""
    async with aclosing(stream):
        return b"".join([chunk async for chunk in stream])


def _content_in_memory(content: bytes) -> PartContent:
    async def stream(start: int, end: int) -> ContentStream:
        for at in range(start, min(end, len(content)), MAX_CHUNK_SIZE):
            yield content[at : min(at + MAX_CHUNK_SIZE, end)]

    async def check(_start: int, _end: int) -> None: ...

    return PartContent(len(content), stream, check)


async def _stream_literal(
    layout: MessageLayout, span: LiteralSpan, start: int, end: int
) -> ContentStream:
    for at in range(start, end, MAX_CHUNK_SIZE):
        yield layout.literal_bytes(span, at, min(at + MAX_CHUNK_SIZE, end))
