"""Messages in the form of the SMTP connection: CRLF line ends, and no Bcc field."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mail.compose.line_length import mended, too_long
from mail.compose.message_builder import without_bcc

LONGEST = 1 << 20  # bytes of a line that are buffered
PAUSE = 0.005  # seconds between two pieces, to let other tasks run
CHUNK = 64 * 1024  # of a message in memory

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"\n\r?\n")
_EMPTY_LINE = re.compile(rb"^\r?\n", re.MULTILINE)

Stream = AsyncGenerator[bytes]


@dataclass(frozen=True, slots=True)
class Flow:
    """A large message that is read from the store each time it is sent."""

    size: int
    head: bytes  # contains the whole header
    steps: Callable[[], Stream]

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in the form that is sent, before dot stuffing."""

    sender: str
    data: bytes | Flow
    eight_bit: bool
    utf8: bool  # RFC 6532
    long: bool = False  # lines longer than RFC 5322 allows

    @classmethod
    def of(cls, sender: str, raw: bytes, *, mend: bool = False) -> "Letter":
        """Make a wire message: all lines end in CRLF and NUL bytes are removed.

        A server may drop a NUL and then see a dot alone on a line (RFC 5321, section 4.5.2). With
        `reencode_long_lines`, MIME parts with lines that are too long are encoded again.
        """
        data = _wired(raw.replace(b"\0", b""))
        if not data.endswith(b"\r\n"):
            data += b"\r\n"
        if mend:
            data = mended(data)
        return cls(sender, data, not data.isascii(), _utf8(data))

    @classmethod
    async def flowing(cls, sender: str, opened: Callable[[], Stream]) -> "Letter":
        """Make a wire message that is streamed, without Bcc. Raises what `open_stream` raises."""
        size, head, eight_bit, long = 0, b"", False, False
        async with aclosing(steps(opened())) as pieces:
            async for piece in pieces:
                head = head or piece
                size += len(piece)
                eight_bit = eight_bit or not piece.isascii()
                long = long or too_long(piece)
        flow = Flow(size, head, lambda: steps(opened()))
        return cls(sender, flow, eight_bit, _utf8(head), long)

    @property
    def head(self) -> bytes:
        """The header of a streamed message, or the whole message if it is in memory."""
        if not isinstance(self.data, Flow):
            return self.data
        end = _HEADER_END.search(self.data.head)
        return self.data.head[: end.start() + 1] if end else self.data.head

    async def pieces(self) -> Stream:
        """Yield the message in pieces that end with a line.

        Only a line that is longer than `MAX_BUFFERED_LINE` is cut, and never before a dot.
        """
        if isinstance(self.data, Flow):
            async with aclosing(self.data.steps()) as flow:
                async for piece in flow:
                    yield piece
            return
        at = 0
        while at < len(self.data):
            end = min(at + CHUNK, len(self.data))
            if end < len(self.data):  # a piece ends with CRLF
                end = self.data.find(b"\r\n", end) + 2
            yield self.data[at:end]
            at = end


async def steps(stream: Stream) -> Stream:
    """Convert a stream to CRLF lines without Bcc. The first piece has the whole header.

    It pauses after each piece, so that other tasks can run.
    """
    held, headed = b"", False
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            looked, held = max(len(held) - 2, 0), held + chunk.replace(b"\0", b"")
            if not headed:
                headed = _EMPTY_LINE.search(held, looked) is not None
                if not headed:
                    continue
                held = without_bcc(held)
            if cut := _cut(held):
                piece, held = _wired(held[:cut]), held[cut:]
                yield piece
                await asyncio.sleep(PAUSE)
    rest = _wired(held if headed else without_bcc(held))
    if rest or not headed:
        yield rest if rest.endswith(b"\r\n") else rest + b"\r\n"


def _cut(text: bytes) -> int:
    """The position where a piece can end: after a line, or inside an endless line.

    In an endless line this is never before a dot.
    """
    end = text.rfind(b"\n") + 1
    if end or len(text) < LONGEST:
        return end
    return max(len(text.rstrip(b".\r")) - 1, 0)


def _wired(text: bytes) -> bytes:
    """The text with all line ends as CRLF."""
    rest = text.replace(b"\r\n", b"")
    return _LINE_END.sub(b"\r\n", text) if b"\n" in rest or b"\r" in rest else text


def _utf8(data: bytes) -> bool:
    """True if the header has bytes that are not ASCII."""
    end = _HEADER_END.search(data)
    return not data[: end and end.end()].isascii()
