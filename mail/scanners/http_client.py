"""An HTTP request to a scanner: the body is streamed, the response is short."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httptools

from mail.network.outbound_http import Gate, Target, Unsent, connected
from mail.scanners.body_stream import Body, exchanged
from mail.scanners.circuit_breaker import Down

HEAD = 16 << 10  # bytes
LARGEST = 1 << 20  # bytes
FINAL = 200  # lower statuses are interim responses
INSIDE = Gate(private=True)  # operators configure scanner addresses


@dataclass(frozen=True, slots=True)
class Answer:
    """The HTTP response of a scanner."""

    status: int
    body: bytes


class _Reader:
    """The callbacks of the HTTP parser."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.sized = False  # Content-Length or Transfer-Encoding
        self.whole = False
        self.body = bytearray()

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.sized |= name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.whole = self.status >= FINAL


async def post(to: Target, fields: Sequence[tuple[str, str]], body: Body) -> Answer:
    """Post a body and return the response. Header names can repeat.

    Raises ScannerUnavailable if there is no valid response.
    """
    try:
        reader, writer = await connected(to, INSIDE)
        try:
            return await exchanged(_send(writer, _head(to, fields, body.size), body), _read(reader))
        finally:
            writer.transport.abort()
    except Unsent as problem:
        raise Down(str(problem)) from None
    except ssl.SSLError:
        raise Down("no TLS that we trust") from None
    except OSError:
        raise Down("the connection failed") from None
    except httptools.HttpParserError:
        raise Down("the answer is no HTTP") from None


def _head(to: Target, fields: Sequence[tuple[str, str]], size: int) -> bytes:
    """Return the request line and header."""
    usual = [
        ("Host", to.authority),
        ("User-Agent", "Merganser"),
        ("Connection", "close"),
        ("Content-Length", str(size)),
    ]
    lines = "".join(f"{name}: {_safe(value)}\r\n" for name, value in [*usual, *fields])
    return f"POST {to.path} HTTP/1.1\r\n{lines}\r\n".encode(errors="replace")


async def _send(writer: asyncio.StreamWriter, head: bytes, body: Body) -> None:
    """Send head and body."""
    writer.write(head)
    async with aclosing(body.pieces()) as pieces:
        async for piece in pieces:
            writer.write(piece)
            await writer.drain()


def _safe(value: str) -> str:
    """Return a header value without unprintable characters."""
    return "".join(c for c in value if c.isprintable())


async def _read(reader: asyncio.StreamReader) -> Answer:
    """Read the response. Raises ScannerUnavailable if it is cut off or too long."""
    found, read = _Reader(), 0
    while not found.whole:
        piece = await reader.read(64 << 10)
        read += len(piece)
        if not piece:
            break
        found.parser.feed_data(piece)
        if (read > HEAD and found.status < FINAL) or len(found.body) > LARGEST:
            raise Down("the answer is too long")
    if not found.whole and (found.sized or not found.status):
        raise Down("the answer ends early")
    return Answer(found.status, bytes(found.body))
