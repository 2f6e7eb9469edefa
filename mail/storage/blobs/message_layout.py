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

from mail.mime import base64_lines
from mail.mime.base64_lines import Wrapping
from mail.storage.blobs.compression import compress_file, verify
from mail.storage.blobs.errors import Corrupt, Hole

MAGIC = b"MSK\x01"
LITERAL, VERBATIM, BASE64 = 0, 1, 2
LINE_ENDS = (b"", b"\n", b"\r\n")
DIGEST = 32  # bytes
NUMBER = 9  # bytes of the longest LEB128 number
BITS, MORE = 0x7F, 0x80  # of each byte of a number; the highest bit says that one follows
SMALLEST_BASE64 = 1024  # encoded bytes; a part up to this size stays in the layout
SMALLEST_VERBATIM = 64 * 1024
STEP = 256 * 1024  # most bytes that `rebuild_message` yields at once
LARGE = 256 * 1024  # bytes; from this size on digests are computed in a thread
FILED = 1024 * 1024  # bytes; a larger content can be in a file

Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Cut:
    """The offsets of the encoded body of a MIME part, and its transfer encoding."""

    start: int
    end: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A span of the raw message that is rebuilt from the content of a blob.

    The span is the content in base64 with the line ends of `wrapping`, or the content itself if
    `wrapping` is None.
    """

    start: int
    end: int
    digest: str
    size: int
    wrapping: Wrapping | None = None


@dataclass(frozen=True, slots=True)
class Filed:
    """A file with the content of a blob, compressed as it will be stored."""

    path: Path
    codec: str
    size: int  # of the content
    stored: int  # of the file


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of a blob that is to be stored."""

    digest: str
    content: bytes | Filed

    @property
    def size(self) -> int:
        """Bytes of the uncompressed content."""
        return self.content.size if isinstance(self.content, Filed) else len(self.content)


@dataclass(frozen=True, slots=True)
class Packed:
    """A message split into its layout and blobs.

    `spans` has one entry for each part that was offered, in that order: None if the part stayed
    in the layout.
    """

    skeleton: bytes
    pieces: list[Piece]
    gaps: list[Gap | None]


@dataclass(frozen=True, slots=True)
class Literal:
    """A span of the raw message with its bytes in the layout, from `layout_offset` on."""

    start: int
    end: int
    offset: int


def pack(raw: bytes, cuts: Sequence[Cut], beside: Path | None = None) -> Packed:
    """Split a message into its layout and blobs; belongs into a thread or helper process.

    With `base_path`, contents over 1 MiB are written to files with names that begin with that
    path, and are never whole in memory.

    A base64 part over 1 KiB is stored decoded. A part over 64 KiB is stored in its encoding if
    it has another encoding, or if encoding it again would give another text. A body that
    overlaps an earlier one or exceeds the message stays in the layout.
    """
    gaps: list[Gap | None] = [None] * len(cuts)
    pieces: dict[str, Piece] = {}
    reached = 0
    for index in sorted(range(len(cuts)), key=lambda index: cuts[index].start):
        cut = cuts[index]
        if not reached <= cut.start <= cut.end <= len(raw):
            continue
        if found := _cut_out(raw, cut, beside):
            gaps[index], piece = found
            pieces.setdefault(piece.digest, piece)
            reached = cut.end
    holes = sorted((gap for gap in gaps if gap), key=lambda gap: gap.start)
    return Packed(_skeleton(raw, holes), list(pieces.values()), gaps)


def _cut_out(raw: bytes, cut: Cut, beside: Path | None) -> tuple[Gap, Piece] | None:
    """The span and the blob of an encoded body; None if the body stays in the layout."""
    size = cut.end - cut.start
    files = beside if size > FILED else None
    if cut.encoding.strip().lower() == "base64" and size > SMALLEST_BASE64:
        start, end = base64_lines.trimmed(raw, cut.start, cut.end)
        if start < end:
            wrapping = base64_lines.wrapping_of(raw, start, end)
            with suppress(base64_lines.Irregular):
                piece = _piece(base64_lines.decoded(raw, start, end, wrapping), files)
                return Gap(start, end, piece.digest, piece.size, wrapping), piece
    if size > SMALLEST_VERBATIM:
        steps = (raw[at : min(at + STEP, cut.end)] for at in range(cut.start, cut.end, STEP))
        piece = _piece(steps, files)
        return Gap(cut.start, cut.end, piece.digest, size), piece
    return None


def _piece(content: Iterator[bytes], beside: Path | None) -> Piece:
    """Hash the content and collect it in memory.

    With `base_path`, it is collected in a compressed file.
    """
    digest = hashlib.sha256()
    if beside is None:
        whole = b"".join(content)
        digest.update(whole)
        return Piece(digest.hexdigest(), whole)
    size, fresh = 0, beside.with_name(f"{beside.name}.new")
    try:
        with fresh.open("wb") as file:
            for step in content:
                digest.update(step)
                size += file.write(step)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    place = beside.with_name(f"{beside.name}.{digest.hexdigest()}")
    codec, stored = compress_file(fresh.rename(place))
    return Piece(digest.hexdigest(), Filed(stored, codec, size, stored.stat().st_size))


def _skeleton(raw: bytes, holes: Sequence[Gap]) -> bytes:
    entries: list[bytes] = []
    literals: list[bytes] = []
    reached = 0
    for start, end, hole in [*((h.start, h.end, h) for h in holes), (len(raw), len(raw), None)]:
        if start > reached:
            entries.append(bytes([LITERAL]) + _number(start - reached))
            literals.append(raw[reached:start])
        if hole:
            entries.append(_hole(hole))
        reached = end
    return b"".join([MAGIC, _number(len(entries)), *entries, *literals])


def prefixed(container: bytes, prefix: bytes) -> bytes:
    """The layout of a message with `prefix` before it. Raises CorruptBlob for a wrong layout."""
    reader = _Reader(container, len(MAGIC))
    count = reader.count()
    size, reached = 0, reader.at
    for nth in range(count):
        more, filling = _entry(reader)
        if nth == 0 and filling is None:
            size, reached = more, reader.at
    entries = container[reached : reader.at]
    count += not size
    first = bytes([LITERAL]) + _number(len(prefix) + size)
    return b"".join([MAGIC, _number(count), first, entries, prefix, container[reader.at :]])


def _hole(gap: Gap) -> bytes:
    place = _number(gap.size) + bytes.fromhex(gap.digest)
    if gap.wrapping is None:
        return bytes([VERBATIM]) + place
    line_end = LINE_ENDS.index(gap.wrapping.eol)
    return bytes([BASE64]) + place + _number(gap.wrapping.width) + bytes([line_end])


def _number(value: int) -> bytes:
    """Encode an unsigned LEB128 number."""
    out = bytearray()
    while value > BITS:
        out.append(value & BITS | MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


class Skeleton:
    """The layout of a message, addressed by offsets of the raw message."""

    def __init__(self, container: bytes, entries: Sequence[Literal | Gap]) -> None:
        self._container = container
        self._entries = entries
        self._starts = [entry.start for entry in entries]
        self.holes = tuple(entry for entry in entries if isinstance(entry, Gap))

    def __len__(self) -> int:
        """The length of the raw message in bytes."""
        return self._entries[-1].end if self._entries else 0

    @property
    def held(self) -> int:
        """Bytes of the layout that are in memory."""
        return len(self._container)

    def slice(self, start: int, end: int) -> bytes:
        """The bytes of the raw message, fewer at its end. Raises BytesInBlob within a blob span."""
        found = b""
        for entry in self.entries(start, end):
            if isinstance(entry, Gap):
                raise Hole(entry.digest)
            found = self.literal(entry, max(start, entry.start), min(end, entry.end))
        return found  # of one entry: literals are never neighbours

    def entries(self, start: int, end: int) -> Iterator[Literal | Gap]:
        """Yield the spans of the raw message that overlap `start` to `end`, in order."""
        first = max(0, bisect_right(self._starts, start) - 1)
        for entry in self._entries[first:]:
            if entry.start >= end:
                return
            if max(start, entry.start) < min(end, entry.end):
                yield entry

    def literal(self, entry: Literal, start: int, end: int) -> bytes:
        """The bytes of a literal span, by offsets of the raw message."""
        shift = entry.offset - entry.start
        return self._container[start + shift : end + shift]


def open_skeleton(container: bytes) -> Skeleton:
    """Parse a layout. Raises CorruptBlob unless `split_message` could have written it."""
    return Skeleton(container, read_layout(container, len(container)))


def read_layout(head: bytes, size: int) -> list[Literal | Gap]:
    """Parse the entries of a layout of `layout_size` bytes from its first bytes.

    Raises CorruptBlob if they are wrong or exceed `head`.
    """
    if not head.startswith(MAGIC):
        raise Corrupt("The skeleton does not begin as one of version 1")
    reader = _Reader(head, len(MAGIC))
    recipe = [_entry(reader) for _ in range(reader.count())]
    entries: list[Literal | Gap] = []
    start, offset = 0, reader.at
    for length, gap in recipe:
        if gap is None and entries and isinstance(entries[-1], Literal):
            raise Corrupt("The skeleton has two literals side by side")
        end = start + _raw_length(length, gap)
        if gap:
            entries.append(Gap(start, end, gap.digest, length, gap.wrapping))
        else:
            entries.append(Literal(start, end, offset))
            offset += length
        start = end
    if offset != size:
        raise Corrupt("The literals do not end with the skeleton")
    return entries


@dataclass(frozen=True, slots=True)
class _Filling:
    """The blob of an entry of the layout, and its base64 line format."""

    digest: str
    wrapping: Wrapping | None


def _raw_length(size: int, filling: _Filling | None) -> int:
    """The length of an entry in bytes of the raw message."""
    if filling is None or filling.wrapping is None:
        return size
    return base64_lines.text_length(size, filling.wrapping)


def _entry(reader: "_Reader") -> tuple[int, _Filling | None]:
    """Parse one entry: the length, and the blob content or None for a literal."""
    kind, size = reader.byte(), reader.number()
    if not size:
        raise Corrupt("An entry of the skeleton is empty")
    match kind:
        case 0:
            return size, None
        case 1:
            return size, _Filling(reader.digest(), None)
        case 2:
            return size, _Filling(reader.digest(), _wrapping(reader.number(), reader.byte()))
    raise Corrupt(f"The skeleton has an entry of kind {kind}")


def _wrapping(width: int, line_end: int) -> Wrapping:
    if line_end >= len(LINE_ENDS) or bool(width) != bool(line_end):
        raise Corrupt(f"Lines of {width} cannot end with {line_end}")
    return Wrapping(width, LINE_ENDS[line_end])


class _Reader:
    """A read position in the bytes of a layout. Its methods raise CorruptBlob at the end."""

    def __init__(self, container: bytes, at: int) -> None:
        self._container = container
        self.at = at

    def take(self, size: int) -> bytes:
        found = self._container[self.at : self.at + size]
        if len(found) != size:
            raise Corrupt("The skeleton ends inside its recipe")
        self.at += size
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def digest(self) -> str:
        return self.take(DIGEST).hex()

    def number(self) -> int:
        value = 0
        for place in range(NUMBER):
            byte = self.byte()
            value |= (byte & BITS) << 7 * place
            if byte < MORE:
                if not byte and place:
                    break  # a shorter form would do
                return value
        raise Corrupt("A number of the skeleton is not in its shortest form, or too large")

    def count(self) -> int:
        value = self.number()
        if value > len(self._container):
            raise Corrupt("The skeleton claims more entries than it has bytes")
        return value


async def rebuild(
    skeleton: Skeleton, fetch: Fetch, *, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes]:
    """Yield the raw message from `start` to `end`, at most 256 KiB at once.

    `fetch_content` returns the content of a digest. It is called only for blobs in the range,
    one at a time, so that at most one is in memory. Raises CorruptBlob if a content doesn't
    match its digest.
    """
    end = len(skeleton) if end is None else min(end, len(skeleton))
    for entry in skeleton.entries(start, end):
        first, last = max(start, entry.start), min(end, entry.end)
        content = await _content(entry, fetch) if isinstance(entry, Gap) else b""
        for at in range(first, last, STEP):
            to = min(at + STEP, last)
            if isinstance(entry, Gap):
                yield _filled(entry, content, at - entry.start, to - entry.start)
            else:
                yield skeleton.literal(entry, at, to)


async def _content(gap: Gap, fetch: Fetch) -> bytes:
    content = await fetch(gap.digest)
    if len(content) != gap.size:
        raise Corrupt(f"The content of {gap.digest} has another size")
    if gap.size < LARGE:
        return verify(gap.digest, content)
    return await asyncio.to_thread(verify, gap.digest, content)


def _filled(gap: Gap, content: bytes, start: int, end: int) -> bytes:
    """The bytes of a blob span, by offsets in the span."""
    if gap.wrapping is None:
        return content[start:end]
    return base64_lines.encode(content, gap.wrapping, start, end)
