"""Messages in the form of the SMTP connection: CRLF line ends, and no Bcc field."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mail.compose.line_length import has_long_line, reencode_parts_with_long_lines
from mail.compose.message_builder import without_bcc

MAX_BUFFERED_LINE = 1 << 20  # bytes of a line that are buffered
PIECE_PAUSE = 0.005  # seconds between two pieces, to let other tasks run
PIECE_BYTES = 64 * 1024  # of a message in memory

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"\n\r?\n")
_EMPTY_LINE = re.compile(rb"^\r?\n", re.MULTILINE)

ByteStream = AsyncGenerator[bytes]


@dataclass(frozen=True, slots=True)
class StreamedBytes:
    """A large message that is read from the store each time it is sent."""

    size: int
    first_piece: bytes  # contains the whole header
    open_stream: Callable[[], ByteStream]

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A message in the form that is sent, before dot stuffing."""

    sender: str
    data: bytes | StreamedBytes
    has_8bit: bool
    has_utf8_header: bool  # RFC 6532
    has_long_lines: bool = False  # lines longer than RFC 5322 allows

    @classmethod
    def from_bytes(
        cls, sender: str, raw_message: bytes, *, reencode_long_lines: bool = False
    ) -> "WireMessage":
        """Make a wire message: all lines end in CRLF and NUL bytes are removed.

        A server may drop a NUL and then see a dot alone on a line (RFC 5321, section 4.5.2). With
        `reencode_long_lines`, MIME parts with lines that are too long are encoded again.
        """
        data = _with_crlf(raw_message.replace(b"\0", b""))
        if not data.endswith(b"\r\n"):
            data += b"\r\n"
        if reencode_long_lines:
            data = reencode_parts_with_long_lines(data)
        return cls(sender, data, not data.isascii(), _has_utf8_header(data))

    @classmethod
    async def from_stream_without_bcc(
        cls, sender: str, open_stream: Callable[[], ByteStream]
    ) -> "WireMessage":
        """Create a streamed wire message without Bcc fields. Raises what `open_stream` raises."""
        size, first_piece, has_8bit, has_long_lines = 0, b"", False, False
        async with aclosing(wire_pieces_without_bcc(open_stream())) as chunks:
            async for chunk in chunks:
                first_piece = first_piece or chunk
                size += len(chunk)
                has_8bit = has_8bit or not chunk.isascii()
                has_long_lines = has_long_lines or has_long_line(chunk)
        streamed = StreamedBytes(size, first_piece, lambda: wire_pieces_without_bcc(open_stream()))
        return cls(sender, streamed, has_8bit, _has_utf8_header(first_piece), has_long_lines)

    @property
    def header_or_whole_message_bytes(self) -> bytes:
        """The header of a streamed message, or the whole message if it is in memory."""
        if not isinstance(self.data, StreamedBytes):
            return self.data
        header_end = _HEADER_END.search(self.data.first_piece)
        return (
            self.data.first_piece[: header_end.start() + 1] if header_end else self.data.first_piece
        )

    async def iter_pieces(self) -> ByteStream:
        """Yield the message in pieces that end with a line.

        Only a line that is longer than `MAX_BUFFERED_LINE` is cut, and never before a dot.
        """
        if isinstance(self.data, StreamedBytes):
            async with aclosing(self.data.open_stream()) as stream:
                async for chunk in stream:
                    yield chunk
            return
        start = 0
        while start < len(self.data):
            end = min(start + PIECE_BYTES, len(self.data))
            if end < len(self.data):  # a piece ends with CRLF
                end = self.data.find(b"\r\n", end) + 2
            yield self.data[start:end]
            start = end


async def wire_pieces_without_bcc(stream: ByteStream) -> ByteStream:
    """Convert a stream to CRLF lines without Bcc. The first piece has the whole header.

    It pauses after each piece, so that other tasks can run.
    """
    buffer, has_header = b"", False
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            search_start, buffer = max(len(buffer) - 2, 0), buffer + chunk.replace(b"\0", b"")
            if not has_header:
                has_header = _EMPTY_LINE.search(buffer, search_start) is not None
                if not has_header:
                    continue
                buffer = without_bcc(buffer)
            if piece_end := _piece_end(buffer):
                line_chunk, buffer = _with_crlf(buffer[:piece_end]), buffer[piece_end:]
                yield line_chunk
                await asyncio.sleep(PIECE_PAUSE)
    last_piece = _with_crlf(buffer if has_header else without_bcc(buffer))
    if last_piece or not has_header:
        yield last_piece if last_piece.endswith(b"\r\n") else last_piece + b"\r\n"


def _piece_end(buffer: bytes) -> int:
    """The position where a piece can end: after a line, or inside an endless line.

    In an endless line this is never before a dot.
    """
    line_end = buffer.rfind(b"\n") + 1
    if line_end or len(buffer) < MAX_BUFFERED_LINE:
        return line_end
    return max(len(buffer.rstrip(b".\r")) - 1, 0)


def _with_crlf(data: bytes) -> bytes:
    """The text with all line ends as CRLF."""
    rest = data.replace(b"\r\n", b"")
    return _LINE_END.sub(b"\r\n", data) if b"\n" in rest or b"\r" in rest else data


def _has_utf8_header(data: bytes) -> bool:
    """True if the header has bytes that are not ASCII."""
    header_end = _HEADER_END.search(data)
    return not data[: header_end and header_end.end()].isascii()
