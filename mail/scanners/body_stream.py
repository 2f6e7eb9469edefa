"""The bytes of a message for a scanner. A large message is streamed, never held in memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

ResponseT = TypeVar("ResponseT")

STEP = 256 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Body:
    """The size of a message and a function that opens a stream of its pieces."""

    size: int
    pieces: Callable[[], AsyncGenerator[bytes]]


def body_of(source: bytes | Path, size: int) -> Body:
    """Return the scan body of a message in memory or in a file."""

    async def of_bytes() -> AsyncGenerator[bytes]:
        assert isinstance(source, bytes)  # noqa: S101 - checked by the caller
        for at in range(0, len(source), STEP):
            yield source[at : at + STEP]

    async def of_file() -> AsyncGenerator[bytes]:
        assert isinstance(source, Path)  # noqa: S101 - checked by the caller
        file: IO[bytes] = await asyncio.to_thread(_opened, source)
        try:
            while piece := await asyncio.to_thread(file.read, STEP):
                yield piece
        finally:
            file.close()

    return Body(size, of_bytes if isinstance(source, bytes) else of_file)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=0)


async def exchanged(
    sending: Coroutine[Any, Any, None], answer: Coroutine[Any, Any, ResponseT]
) -> ResponseT:
    """Send a request and return the response. If the response is early, sending stops."""
    sent, coming = asyncio.create_task(sending), asyncio.create_task(answer)
    try:
        await asyncio.wait({sent, coming}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            with suppress(ConnectionError):  # the scanner can reply before it closes the connection
                await sent
        return await coming
    finally:
        sent.cancel()
        coming.cancel()
        await asyncio.gather(sent, coming, return_exceptions=True)
