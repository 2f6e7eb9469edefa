"""Scan a message for viruses with clamd: INSTREAM over a socket."""

import asyncio
import re
import socket
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from mail.scanners.body_stream import ScanBody, send_and_receive
from mail.scanners.circuit_breaker import MessageTooLargeForScanner, ScannerUnavailable
from mail.spam.scan_result import single_line

SCANNER_NAME = "clamd"
MAX_RESPONSE = 4096  # bytes of an answer
_VIRUS_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)


async def scan_for_virus(endpoint: str, body: ScanBody) -> str | None:
    """Return the name of the virus in a message, None if there is none.

    The endpoint is host:port, or `unix:` and a socket path. Raises ScannerUnavailable,
    MessageTooLargeForScanner.
    """
    try:
        # A plain socket: clamd replies before it closes the connection. A stream that
        # can't be written to any more would lose the reply.
        with await _connect(endpoint) as connection:
            return virus_name_from_response_or_none(
                await send_and_receive(_send_instream(connection, body), _read_response(connection))
            )
    except (OSError, OverflowError, UnicodeError):  # the last two: invalid port or host name
        raise ScannerUnavailable("connection failed") from None


async def query_clamd_version(endpoint: str) -> str:
    """Return the versions of clamd and its database, as in "ClamAV 1.4.1/27500/Mon Jan 1".

    Raises OSError or ScannerUnavailable.
    """
    with await _connect(endpoint) as connection:
        await asyncio.get_running_loop().sock_sendall(connection, b"zVERSION\0")
        return single_line(await _read_response(connection))


async def _connect(endpoint: str) -> socket.socket:
    """Connect to the first address that accepts. Raises OSError if none does."""
    last: OSError | None = None
    for family, address in await _socket_addresses(endpoint):
        new_socket = socket.socket(family, socket.SOCK_STREAM)
        new_socket.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(new_socket, address)
        except OSError as problem:  # try the next address
            new_socket.close()
            last = problem
        except BaseException:
            new_socket.close()
            raise
        else:
            return new_socket
    raise last or OSError


async def _socket_addresses(endpoint: str) -> Sequence[tuple[int, Any]]:
    """Return (socket family, address) pairs of an endpoint."""
    if endpoint.startswith("unix:"):
        return [(socket.AF_UNIX, endpoint.removeprefix("unix:"))]
    host, _, port = endpoint.rpartition(":")
    loop = asyncio.get_running_loop()
    address_infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return [(address_info[0], address_info[4]) for address_info in address_infos]


async def _send_instream(connection: socket.socket, body: ScanBody) -> None:
    """Send the message in chunks with a length prefix. An empty chunk ends it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, b"zINSTREAM\0")
    async with aclosing(body.open_pieces()) as chunks:
        async for chunk in chunks:
            await loop.sock_sendall(connection, len(chunk).to_bytes(4, "big") + chunk)
    await loop.sock_sendall(connection, bytes(4))


async def _read_response(connection: socket.socket) -> str:
    """Read the response up to its NUL. Raises ScannerUnavailable if it is cut off or too long."""
    heard = b""
    while b"\0" not in heard:
        chunk = await asyncio.get_running_loop().sock_recv(connection, MAX_RESPONSE)
        heard += chunk
        if not chunk:
            raise ScannerUnavailable("response truncated")
        if len(heard) > MAX_RESPONSE:
            raise ScannerUnavailable("response too long")
    return heard.partition(b"\0")[0].decode(errors="replace")


def virus_name_from_response_or_none(response: str) -> str | None:
    """Return the name of the virus in a response, or None.

    Raises ScannerUnavailable, MessageTooLargeForScanner.
    """
    if response == "stream: OK":
        return None
    if match := _VIRUS_FOUND.fullmatch(response):
        return single_line(match[1]) or "unknown"
    if "size limit exceeded" in response:
        raise MessageTooLargeForScanner
    raise ScannerUnavailable("response has no verdict")
