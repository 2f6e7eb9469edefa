"""The bytes of a message on their way to a scanner: never all of a large one in memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

Answer = TypeVar("Answer")

STEP = 256 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Body:
    """So many bytes, and what yields them."""

    size: int
    pieces: Callable[[], AsyncGenerator[bytes]]


def body_of(source: bytes | Path, size: int) -> Body:
    """A message that is in memory, or in a file."""

    async def of_bytes() -> AsyncGenerator[bytes]:
        assert isinstance(source, bytes)  # noqa: S101 - else it is the other
        for at in range(0, len(source), STEP):
            yield source[at : at + STEP]

    async def of_file() -> AsyncGenerator[bytes]:
        assert isinstance(source, Path)  # noqa: S101 - as above
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
    sending: Coroutine[Any, Any, None], answer: Coroutine[Any, Any, Answer]
) -> Answer:
    """The answer to what is sent; where it comes early, the rest is not sent."""
    sent, coming = asyncio.create_task(sending), asyncio.create_task(answer)
    try:
        await asyncio.wait({sent, coming}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            with suppress(ConnectionError):  # it may have said why before it hung up
                await sent
        return await coming
    finally:
        sent.cancel()
        coming.cancel()
        await asyncio.gather(sent, coming, return_exceptions=True)
