"""The layout of a message and its blobs, from which the message is rebuilt byte for byte.

Large encoded parts are cut out of the raw message. Each is a blob, named by the SHA-256 of its
content. The rest of the message is in the bytes of the layout:

    magic       b"MSK", then the version, one byte: 1
    count       number of entries
    entries     `count` times, in the order of the raw message:
                  00 length                              literal bytes
                  01 length digest                       a span that is the content of a blob
                  02 length digest width line-end        a span that is the content in base64
    literals    the bytes of all literals, to the end

Numbers are unsigned LEB128 in their shortest form, below 2^63. `length` is that of the literal
or of the blob's content, never 0; `digest` is 32 bytes; `width` counts the characters of a
full line, and is 0 if the base64 is a single line; `line-end` is 0 (none, only with
width 0), 1 (LF) or 2 (CRLF). A base64 span ends with its last character: white space before
and after it is literal. Two literals are never neighbours. The parser refuses all else.
"""

import asyncio
import hashlib
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mail.mime import base64_lines
from mail.mime.base64_lines import LineWrapping
from mail.storage.blobs.compression import replace_file_by_smaller_compressed_file, verify_digest
from mail.storage.blobs.errors import BytesInBlob, CorruptBlob

MAGIC = b"MSK\x01"
LITERAL, VERBATIM, BASE64 = 0, 1, 2
LINE_ENDS = (b"", b"\n", b"\r\n")
DIGEST_SIZE = 32  # bytes
MAX_NUMBER_SIZE = 9  # bytes of the longest LEB128 number
LEB128_VALUE_BITS = 0x7F  # of each byte of a number
LEB128_MORE_BIT = 0x80  # another byte follows
SMALLEST_BASE64 = 1024  # encoded bytes; a part up to this size stays in the layout
SMALLEST_VERBATIM = 64 * 1024
MAX_CHUNK_SIZE = 256 * 1024  # most bytes that `rebuild_message` yields at once
THREAD_THRESHOLD = 256 * 1024  # bytes; from this size on digests are computed in a thread
FILE_THRESHOLD = 1024 * 1024  # bytes; a larger content can be in a file

FetchContent = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class EncodedBody:
    """The offsets of the encoded body of a MIME part, and its transfer encoding."""

    start: int
    end: int
    encoding: str


@dataclass(frozen=True, slots=True)
class BlobSpan:
    """A span of the raw message that is rebuilt from the content of a blob.

    The span is the content in base64 with the line ends of `wrapping`, or the content itself if
    `wrapping` is None.
    """

    start: int
    end: int
    digest: str
    content_size: int
    wrapping: LineWrapping | None = None


@dataclass(frozen=True, slots=True)
class ContentFile:
    """A file with the content of a blob, compressed as it will be stored."""

    path: Path
    codec: str
    content_size: int  # of the content
    stored_size: int  # of the file


@dataclass(frozen=True, slots=True)
class NewBlob:
    """The content of a blob that is to be stored."""

    digest: str
    content: bytes | ContentFile

    @property
    def size(self) -> int:
        """Bytes of the uncompressed content."""
        return (
            self.content.content_size
            if isinstance(self.content, ContentFile)
            else len(self.content)
        )


@dataclass(frozen=True, slots=True)
class SplitMessage:
    """A message split into its layout and blobs.

    `spans` has one entry for each part that was offered, in that order: None if the part stayed
    in the layout.
    """

    layout_bytes: bytes
    blobs: list[NewBlob]
    spans: list[BlobSpan | None]


@dataclass(frozen=True, slots=True)
class LiteralSpan:
    """A span of the raw message with its bytes in the layout, from `layout_offset` on."""

    start: int
    end: int
    layout_offset: int


def split_message(
    raw: bytes, bodies: Sequence[EncodedBody], base_path: Path | None = None
) -> SplitMessage:
    """Split a message into its layout and blobs; belongs into a thread or helper process.

    With `base_path`, contents over 1 MiB are written to files with names that begin with that
    path, and are never whole in memory.

    A base64 part over 1 KiB is stored decoded. A part over 64 KiB is stored in its encoding if
    it has another encoding, or if encoding it again would give another text. A body that
    overlaps an earlier one or exceeds the message stays in the layout.
    """
    gaps: list[BlobSpan | None] = [None] * len(bodies)
    blobs_by_digest: dict[str, NewBlob] = {}
    reached = 0
    for index in sorted(range(len(bodies)), key=lambda index: bodies[index].start):
        body_range = bodies[index]
        if not reached <= body_range.start <= body_range.end <= len(raw):
            continue
        if blob_and_gap := _extract_span_and_blob_or_none(raw, body_range, base_path):
            gaps[index], blob = blob_and_gap
            blobs_by_digest.setdefault(blob.digest, blob)
            reached = body_range.end
    holes = sorted((gap for gap in gaps if gap), key=lambda gap: gap.start)
    return SplitMessage(_encode_layout(raw, holes), list(blobs_by_digest.values()), gaps)


def _extract_span_and_blob_or_none(
    raw: bytes, body: EncodedBody, base_path: Path | None
) -> tuple[BlobSpan, NewBlob] | None:
    """The span and the blob of an encoded body; None if the body stays in the layout."""
    size = body.end - body.start
    files = base_path if size > FILE_THRESHOLD else None
    if body.encoding.strip().lower() == "base64" and size > SMALLEST_BASE64:
        start, end = base64_lines.range_without_whitespace(raw, body.start, body.end)
        if start < end:
            wrapping = base64_lines.detect_wrapping(raw, start, end)
            with suppress(base64_lines.IrregularBase64):
                blob = _new_blob_in_memory_or_file(
                    base64_lines.decode_restorable_chunks(raw, start, end, wrapping), files
                )
                return BlobSpan(start, end, blob.digest, blob.size, wrapping), blob
    if size > SMALLEST_VERBATIM:
        steps = (
            raw[at : min(at + MAX_CHUNK_SIZE, body.end)]
            for at in range(body.start, body.end, MAX_CHUNK_SIZE)
        )
        blob = _new_blob_in_memory_or_file(steps, files)
        return BlobSpan(body.start, body.end, blob.digest, size), blob
    return None


def _new_blob_in_memory_or_file(content: Iterator[bytes], base_path: Path | None) -> NewBlob:
    """Hash the content and collect it in memory.

    With `base_path`, it is collected in a compressed file.
    """
    digest = hashlib.sha256()
    if base_path is None:
        joined_content = b"".join(content)
        digest.update(joined_content)
        return NewBlob(digest.hexdigest(), joined_content)
    size, fresh = 0, base_path.with_name(f"{base_path.name}.new")
    try:
        with fresh.open("wb") as file:
            for step in content:
                digest.update(step)
                size += file.write(step)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    blob_path = base_path.with_name(f"{base_path.name}.{digest.hexdigest()}")
    codec, stored = replace_file_by_smaller_compressed_file(fresh.rename(blob_path))
    return NewBlob(digest.hexdigest(), ContentFile(stored, codec, size, stored.stat().st_size))


def _encode_layout(raw: bytes, blob_spans: Sequence[BlobSpan]) -> bytes:
    entries: list[bytes] = []
    literals: list[bytes] = []
    reached = 0
    for start, end, hole in [
        *((h.start, h.end, h) for h in blob_spans),
        (len(raw), len(raw), None),
    ]:
        if start > reached:
            entries.append(bytes([LITERAL]) + _encode_number(start - reached))
            literals.append(raw[reached:start])
        if hole:
            entries.append(_encode_blob_span(hole))
        reached = end
    return b"".join([MAGIC, _encode_number(len(entries)), *entries, *literals])


def prepend_to_layout(layout_bytes: bytes, prefix: bytes) -> bytes:
    """The layout of a message with `prefix` before it. Raises CorruptBlob for a wrong layout."""
    reader = _LayoutReader(layout_bytes, len(MAGIC))
    count = reader.read_entry_count()
    size, reached = 0, reader.position
    for nth in range(count):
        entry = _parse_layout_entry(reader)
        if nth == 0 and entry.blob is None:
            size, reached = entry.content_size, reader.position
    entries = layout_bytes[reached : reader.position]
    count += not size
    first = bytes([LITERAL]) + _encode_number(len(prefix) + size)
    return b"".join(
        [MAGIC, _encode_number(count), first, entries, prefix, layout_bytes[reader.position :]]
    )


def _encode_blob_span(blob_span: BlobSpan) -> bytes:
    blob_reference = _encode_number(blob_span.content_size) + bytes.fromhex(blob_span.digest)
    if blob_span.wrapping is None:
        return bytes([VERBATIM]) + blob_reference
    line_end = LINE_ENDS.index(blob_span.wrapping.eol)
    return (
        bytes([BASE64])
        + blob_reference
        + _encode_number(blob_span.wrapping.width)
        + bytes([line_end])
    )


def _encode_number(value: int) -> bytes:
    """Encode an unsigned LEB128 number."""
    out = bytearray()
    while value > LEB128_VALUE_BITS:
        out.append(value & LEB128_VALUE_BITS | LEB128_MORE_BIT)
        value >>= 7
    out.append(value)
    return bytes(out)


class MessageLayout:
    """The layout of a message, addressed by offsets of the raw message."""

    def __init__(self, layout_bytes: bytes, entries: Sequence[LiteralSpan | BlobSpan]) -> None:
        self._encode_layout = layout_bytes
        self._entries = entries
        self._starts = [entry.start for entry in entries]
        self.blob_spans = tuple(entry for entry in entries if isinstance(entry, BlobSpan))

    def __len__(self) -> int:
        """The length of the raw message in bytes."""
        return self._entries[-1].end if self._entries else 0

    @property
    def memory_size(self) -> int:
        """Bytes of the layout that are in memory."""
        return len(self._encode_layout)

    def slice(self, start: int, end: int) -> bytes:
        """The bytes of the raw message, fewer at its end. Raises BytesInBlob within a blob span."""
        data = b""
        for entry in self.spans_between(start, end):
            if isinstance(entry, BlobSpan):
                raise BytesInBlob(entry.digest)
            data = self.literal_bytes(entry, max(start, entry.start), min(end, entry.end))
        return data  # of one entry: literals are never neighbours

    def spans_between(self, start: int, end: int) -> Iterator[LiteralSpan | BlobSpan]:
        """Yield the spans of the raw message that overlap `start` to `end`, in order."""
        first = max(0, bisect_right(self._starts, start) - 1)
        for index in range(first, len(self._entries)):  # a slice would copy all later entries
            entry = self._entries[index]
            if entry.start >= end:
                return
            if max(start, entry.start) < min(end, entry.end):
                yield entry

    def literal_bytes(self, span: LiteralSpan, start: int, end: int) -> bytes:
        """The bytes of a literal span, by offsets of the raw message."""
        shift = span.layout_offset - span.start
        return self._encode_layout[start + shift : end + shift]


def parse_layout(layout_bytes: bytes) -> MessageLayout:
    """Parse a layout. Raises CorruptBlob unless `split_message` could have written it."""
    return MessageLayout(layout_bytes, parse_layout_entries(layout_bytes, len(layout_bytes)))


def parse_layout_entries(head: bytes, layout_size: int) -> list[LiteralSpan | BlobSpan]:
    """Parse the entries of a layout of `layout_size` bytes from its first bytes.

    Raises CorruptBlob if they are wrong or exceed `head`.
    """
    if not head.startswith(MAGIC):
        raise CorruptBlob("The skeleton has no header of version 1")
    reader = _LayoutReader(head, len(MAGIC))
    recipe = [_parse_layout_entry(reader) for _ in range(reader.read_entry_count())]
    entries: list[LiteralSpan | BlobSpan] = []
    start, offset = 0, reader.position
    for length, blob in recipe:
        if blob is None and entries and isinstance(entries[-1], LiteralSpan):
            raise CorruptBlob("The skeleton has two literals side by side")
        end = start + _length_in_raw_message(length, blob)
        if blob:
            entries.append(BlobSpan(start, end, blob.digest, length, blob.wrapping))
        else:
            entries.append(LiteralSpan(start, end, offset))
            offset += length
        start = end
    if offset != layout_size:
        raise CorruptBlob("The literals do not end with the skeleton")
    return entries


@dataclass(frozen=True, slots=True)
class _SpanContent:
    """The blob of an entry of the layout, and its base64 line format."""

    digest: str
    wrapping: LineWrapping | None


def _length_in_raw_message(content_size: int, blob: _SpanContent | None) -> int:
    """The length of an entry in bytes of the raw message."""
    if blob is None or blob.wrapping is None:
        return content_size
    return base64_lines.encoded_length(content_size, blob.wrapping)


class _LayoutEntry(NamedTuple):
    """One entry of a layout, as it is encoded."""

    content_size: int  # bytes before base64
    blob: _SpanContent | None  # None for a literal


def _parse_layout_entry(reader: "_LayoutReader") -> _LayoutEntry:
    """Parse the next entry. Raises CorruptBlob if it is wrong."""
    kind, size = reader.read_byte(), reader.read_number()
    if not size:
        raise CorruptBlob("An entry of the skeleton is empty")
    match kind:
        case 0:
            return _LayoutEntry(size, None)
        case 1:
            return _LayoutEntry(size, _SpanContent(reader.read_digest(), None))
        case 2:
            digest = reader.read_digest()
            wrapping = _parse_wrapping(reader.read_number(), reader.read_byte())
            return _LayoutEntry(size, _SpanContent(digest, wrapping))
    raise CorruptBlob(f"The skeleton has an entry of kind {kind}")


def _parse_wrapping(width: int, line_end: int) -> LineWrapping:
    if line_end >= len(LINE_ENDS) or bool(width) != bool(line_end):
        raise CorruptBlob(f"Lines of {width} cannot end with {line_end}")
    return LineWrapping(width, LINE_ENDS[line_end])


class _LayoutReader:
    """A read position in the bytes of a layout. Its methods raise CorruptBlob at the end."""

    def __init__(self, layout_bytes: bytes, position: int) -> None:
        self._encode_layout = layout_bytes
        self.position = position

    def read_bytes(self, size: int) -> bytes:
        data = self._encode_layout[self.position : self.position + size]
        if len(data) != size:
            raise CorruptBlob("The skeleton ends inside its recipe")
        self.position += size
        return data

    def read_byte(self) -> int:
        return self.read_bytes(1)[0]

    def read_digest(self) -> str:
        return self.read_bytes(DIGEST_SIZE).hex()

    def read_number(self) -> int:
        value = 0
        for byte_index in range(MAX_NUMBER_SIZE):
            byte = self.read_byte()
            value |= (byte & LEB128_VALUE_BITS) << 7 * byte_index
            if byte < LEB128_MORE_BIT:
                if not byte and byte_index:
                    break  # a shorter form would do
                return value
        raise CorruptBlob("A number of the skeleton is not in its shortest form, or too large")

    def read_entry_count(self) -> int:
        value = self.read_number()
        if value > len(self._encode_layout):
            raise CorruptBlob("The skeleton claims more entries than it has bytes")
        return value


async def rebuild_message(
    layout: MessageLayout, fetch_content: FetchContent, *, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the raw message from `start` to `end`, at most 256 KiB at once.

    `fetch_content` returns the content of a digest. It is called only for blobs in the range,
    one at a time, so that at most one is in memory. Raises CorruptBlob if a content doesn't
    match its digest.
    """
    end = len(layout) if end is None else min(end, len(layout))
    for entry in layout.spans_between(start, end):
        first, last = max(start, entry.start), min(end, entry.end)
        content = (
            await _fetch_verified_content(entry, fetch_content)
            if isinstance(entry, BlobSpan)
            else b""
        )
        for at in range(first, last, MAX_CHUNK_SIZE):
            chunk_end = min(at + MAX_CHUNK_SIZE, last)
            if isinstance(entry, BlobSpan):
                yield _blob_span_bytes(entry, content, at - entry.start, chunk_end - entry.start)
            else:
                yield layout.literal_bytes(entry, at, chunk_end)


async def _fetch_verified_content(blob_span: BlobSpan, fetch_content: FetchContent) -> bytes:
    content = await fetch_content(blob_span.digest)
    if len(content) != blob_span.content_size:
        raise CorruptBlob(f"The content of {blob_span.digest} has another size")
    if blob_span.content_size < THREAD_THRESHOLD:
        return verify_digest(blob_span.digest, content)
    return await asyncio.to_thread(verify_digest, blob_span.digest, content)


def _blob_span_bytes(blob_span: BlobSpan, content: bytes, start: int, end: int) -> bytes:
    """The bytes of a blob span, by offsets in the span."""
    if blob_span.wrapping is None:
        return content[start:end]
    return base64_lines.encode_range(content, blob_span.wrapping, start, end)
