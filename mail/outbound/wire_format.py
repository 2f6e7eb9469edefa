"""A message as it goes over the wire: lines that end in CRLF, and nothing of Bcc."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mail.compose.line_length import mended, too_long
from mail.compose.message_builder import without_bcc

LONGEST = 1 << 20  # bytes of a line that are kept together
PAUSE = 0.005  # seconds between two pieces, about as long as one takes: others go first
CHUNK = 64 * 1024  # bytes of what is in memory that are written at once

_LINE_END = re.compile(rb"\r\n|\r|\n")
_HEADER_END = re.compile(rb"\n\r?\n")
_EMPTY_LINE = re.compile(rb"^\r?\n", re.MULTILINE)

Stream = AsyncGenerator[bytes]


@dataclass(frozen=True, slots=True)
class Flow:
    """A large message, as often as it is wanted."""

    size: int
    head: bytes  # its beginning: the whole header
    steps: Callable[[], Stream]

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it goes over the wire, before dots are doubled."""

    sender: str
    data: bytes | Flow
    eight_bit: bool
    utf8: bool  # a header field is not ASCII (RFC 6532)
    long: bool = False  # it has lines longer than mail may have

    @classmethod
    def of(cls, sender: str, raw: bytes, *, mend: bool = False) -> "Letter":
        """Every line ends in CRLF, the last one too, and there is no NUL; nothing else is changed.

        A server may drop a NUL, and then see a dot in a line of its own (RFC 5321, section 4.5.2).
        With `mend` parts with lines that are too long are encoded anew.
        """
        data = _wired(raw.replace(b"\0", b""))
        if not data.endswith(b"\r\n"):
            data += b"\r\n"
        if mend:
            data = mended(data)
        return cls(sender, data, not data.isascii(), _utf8(data))

    @classmethod
    async def flowing(cls, sender: str, opened: Callable[[], Stream]) -> "Letter":
        """The same of what comes in pieces, without its Bcc. What `opened` raises."""
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
        """The whole of it, or, of one that is large, its header and no more."""
        if not isinstance(self.data, Flow):
            return self.data
        end = _HEADER_END.search(self.data.head)
        return self.data.head[: end.start() + 1] if end else self.data.head

    async def pieces(self) -> Stream:
        """It in pieces, none of which begins with a dot that does not begin a line."""
        if isinstance(self.data, Flow):
            async with aclosing(self.data.steps()) as flow:
                async for piece in flow:
                    yield piece
            return
        at = 0
        while at < len(self.data):
            end = min(at + CHUNK, len(self.data))
            if end < len(self.data):  # a piece ends with a line
                end = self.data.find(b"\r\n", end) + 2
            yield self.data[at:end]
            at = end


async def steps(stream: Stream) -> Stream:
    """What comes in pieces cut anywhere: wired, without its Bcc, its header in the first piece.

    Others are let in between them.
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
    """Where a piece may end: with a line, or in one without an end, but not before a dot."""
    end = text.rfind(b"\n") + 1
    if end or len(text) < LONGEST:
        return end
    return max(len(text.rstrip(b".\r")) - 1, 0)


def _wired(text: bytes) -> bytes:
    rest = text.replace(b"\r\n", b"")
    return _LINE_END.sub(b"\r\n", text) if b"\n" in rest or b"\r" in rest else text


def _utf8(data: bytes) -> bool:
    end = _HEADER_END.search(data)
    return not data[: end and end.end()].isascii()
