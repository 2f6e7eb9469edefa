"""An HTTP request to a scanner: the body is streamed, the response is short."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httptools

from mail.network.outbound_http import HttpRequestFailed, HttpTarget, NetworkPolicy, open_connection
from mail.scanners.body_stream import ScanBody, send_and_receive
from mail.scanners.circuit_breaker import ScannerUnavailable

MAX_HEADER = 16 << 10  # bytes
MAX_BODY = 1 << 20  # bytes
FIRST_FINAL_STATUS = 200  # lower statuses are interim responses
ANY_NETWORK = NetworkPolicy(allows_private=True)  # operators configure scanner addresses


@dataclass(frozen=True, slots=True)
class ScannerResponse:
    """The HTTP response of a scanner."""

    status: int
    body: bytes


class _ResponseParser:
    """The callbacks of the HTTP parser."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.has_length = False  # Content-Length or Transfer-Encoding
        self.is_complete = False
        self.body = bytearray()

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.has_length |= name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, chunk: bytes) -> None:
        self.body += chunk

    def on_message_complete(self) -> None:
        self.is_complete = self.status >= FIRST_FINAL_STATUS


async def post_to_scanner(
    http_target: HttpTarget, header_fields: Sequence[tuple[str, str]], body: ScanBody
) -> ScannerResponse:
    """Post a body and return the response. Header names can repeat.

    Raises ScannerUnavailable if there is no valid response.
    """
    try:
        reader, writer = await open_connection(http_target, ANY_NETWORK)
        try:
            return await send_and_receive(
                _send_request(writer, _request_head(http_target, header_fields, body.size), body),
                _read_response(reader),
            )
        finally:
            writer.transport.abort()
    except HttpRequestFailed as problem:
        raise ScannerUnavailable(str(problem)) from None
    except ssl.SSLError:
        raise ScannerUnavailable("TLS certificate not trusted") from None
    except OSError:
        raise ScannerUnavailable("connection failed") from None
    except httptools.HttpParserError:
        raise ScannerUnavailable("response is not HTTP") from None


def _request_head(
    http_target: HttpTarget, header_fields: Sequence[tuple[str, str]], body_size: int
) -> bytes:
    """Return the request line and header."""
    default_headers = [
        ("Host", http_target.authority),
        ("User-Agent", "Merganser"),
        ("Connection", "close"),
        ("Content-Length", str(body_size)),
    ]
    lines = "".join(
        f"{name}: {_header_value(value)}\r\n" for name, value in [*default_headers, *header_fields]
    )
    return f"POST {http_target.path} HTTP/1.1\r\n{lines}\r\n".encode(errors="replace")


async def _send_request(writer: asyncio.StreamWriter, head: bytes, body: ScanBody) -> None:
    """Send head and body."""
    writer.write(head)
    async with aclosing(body.open_pieces()) as chunks:
        async for chunk in chunks:
            writer.write(chunk)
            await writer.drain()


def _header_value(value: str) -> str:
    """Return a header value without unprintable characters."""
    return "".join(c for c in value if c.isprintable())


async def _read_response(reader: asyncio.StreamReader) -> ScannerResponse:
    """Read the response. Raises ScannerUnavailable if it is cut off or too long."""
    parser, read_bytes = _ResponseParser(), 0
    while not parser.is_complete:
        chunk = await reader.read(64 << 10)
        read_bytes += len(chunk)
        if not chunk:
            break
        parser.parser.feed_data(chunk)
        if (read_bytes > MAX_HEADER and parser.status < FIRST_FINAL_STATUS) or len(
            parser.body
        ) > MAX_BODY:
            raise ScannerUnavailable("response too long")
    if not parser.is_complete and (parser.has_length or not parser.status):
        raise ScannerUnavailable("response truncated")
    return ScannerResponse(parser.status, bytes(parser.body))
