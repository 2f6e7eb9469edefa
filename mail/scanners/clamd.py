"""Asking clamd whether a message holds a virus: INSTREAM over a socket."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mail.scan import cut
from mail.scanners.body import Body, exchanged
from mail.scanners.breaker import Down, TooLarge

NAME = "clamd"
LONGEST = 4096  # bytes of an answer
_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)


async def check(place: str, body: Body) -> str | None:
    """The name of the virus in a message, None where there is none. Down; TooLarge.

    `place` is host:port, or unix: and the path of a socket.
    """
    try:
        reader, writer = await _connected(place)
        return read(await exchanged(writer, _stream(body), _answer(reader)))
    except OSError:
        raise Down("the connection failed") from None


async def _connected(place: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if place.startswith("unix:"):
        return await asyncio.open_unix_connection(place.removeprefix("unix:"), limit=LONGEST)
    host, _, port = place.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), limit=LONGEST)


async def _stream(body: Body) -> AsyncGenerator[bytes]:
    """The message in pieces, each behind its length; one of no length is the end."""
    yield b"zINSTREAM\0"
    async with aclosing(body.pieces()) as pieces:
        async for piece in pieces:
            yield len(piece).to_bytes(4, "big") + piece
    yield bytes(4)


async def _answer(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\0"))[:-1].decode(errors="replace")
    except asyncio.IncompleteReadError:
        raise Down("the answer ends early") from None
    except asyncio.LimitOverrunError:
        raise Down("the answer is too long") from None


def read(answer: str) -> str | None:
    """The name of the virus that an answer tells of. Down; TooLarge."""
    if answer == "stream: OK":
        return None
    if found := _FOUND.fullmatch(answer):
        return cut(found[1]) or "unknown"
    if "size limit exceeded" in answer:
        raise TooLarge
    raise Down("the answer is no verdict")
