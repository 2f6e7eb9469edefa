"""Scan a message for viruses with clamd: INSTREAM over a socket."""

import asyncio
import re
import socket
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from mail.scanners.body_stream import Body, exchanged
from mail.scanners.circuit_breaker import Down, TooLarge
from mail.spam.scan_result import cut

NAME = "clamd"
LONGEST = 4096  # bytes of an answer
_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)


async def check(place: str, body: Body) -> str | None:
    """Return the name of the virus in a message, None if there is none.

    The endpoint is host:port, or `unix:` and a socket path. Raises ScannerUnavailable,
    MessageTooLargeForScanner.
    """
    try:
        # A plain socket: clamd replies before it closes the connection. A stream that
        # can't be written to any more would lose the reply.
        with await _connected(place) as there:
            return read(await exchanged(_send(there, body), _answer(there)))
    except (OSError, OverflowError, UnicodeError):  # the last two: invalid port or host name
        raise Down("the connection failed") from None


async def _connected(place: str) -> socket.socket:
    """Connect to the first address that accepts. Raises OSError if none does."""
    last: OSError | None = None
    for family, address in await _addresses(place):
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(one, address)
        except OSError as problem:  # try the next address
            one.close()
            last = problem
        except BaseException:
            one.close()
            raise
        else:
            return one
    raise last or OSError


async def _addresses(place: str) -> Sequence[tuple[int, Any]]:
    """Return (socket family, address) pairs of an endpoint."""
    if place.startswith("unix:"):
        return [(socket.AF_UNIX, place.removeprefix("unix:"))]
    host, _, port = place.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return [(each[0], each[4]) for each in found]


async def _send(there: socket.socket, body: Body) -> None:
    """Send the message in chunks with a length prefix. An empty chunk ends it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(there, b"zINSTREAM\0")
    async with aclosing(body.pieces()) as pieces:
        async for piece in pieces:
            await loop.sock_sendall(there, len(piece).to_bytes(4, "big") + piece)
    await loop.sock_sendall(there, bytes(4))


async def _answer(there: socket.socket) -> str:
    """Read the response up to its NUL. Raises ScannerUnavailable if it is cut off or too long."""
    heard = b""
    while b"\0" not in heard:
        piece = await asyncio.get_running_loop().sock_recv(there, LONGEST)
        heard += piece
        if not piece:
            raise Down("the answer ends early")
        if len(heard) > LONGEST:
            raise Down("the answer is too long")
    return heard.partition(b"\0")[0].decode(errors="replace")


def read(answer: str) -> str | None:
    """Return the name of the virus in a response, or None.

    Raises ScannerUnavailable, MessageTooLargeForScanner.
    """
    if answer == "stream: OK":
        return None
    if found := _FOUND.fullmatch(answer):
        return cut(found[1]) or "unknown"
    if "size limit exceeded" in answer:
        raise TooLarge
    raise Down("the answer is no verdict")
