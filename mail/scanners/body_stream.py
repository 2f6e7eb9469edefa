"""The bytes of a message for a scanner. A large message is streamed, never held in memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

ResponseT = TypeVar("ResponseT")

PIECE_SIZE = 256 << 10  # bytes


@dataclass(frozen=True, slots=True)
class ScanBody:
    """The size of a message and a function that opens a stream of its pieces."""

    size: int
    open_pieces: Callable[[], AsyncGenerator[bytes]]


def body_for_scanner(raw_message: bytes | Path, size: int) -> ScanBody:
    """Return the scan body of a message in memory or in a file."""

    async def pieces_of_bytes() -> AsyncGenerator[bytes]:
        assert isinstance(raw_message, bytes)  # noqa: S101 - checked by the caller
        for at in range(0, len(raw_message), PIECE_SIZE):
            yield raw_message[at : at + PIECE_SIZE]

    async def pieces_of_file() -> AsyncGenerator[bytes]:
        assert isinstance(raw_message, Path)  # noqa: S101 - checked by the caller
        file: IO[bytes] = await asyncio.to_thread(_open_unbuffered, raw_message)
        try:
            while chunk := await asyncio.to_thread(file.read, PIECE_SIZE):
                yield chunk
        finally:
            file.close()

    return ScanBody(size, pieces_of_bytes if isinstance(raw_message, bytes) else pieces_of_file)


def _open_unbuffered(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=0)


async def send_and_receive(
    send: Coroutine[Any, Any, None], receive: Coroutine[Any, Any, ResponseT]
) -> ResponseT:
    """Send a request and return the response. If the response is early, sending stops."""
    sent, receive_task = asyncio.create_task(send), asyncio.create_task(receive)
    try:
        await asyncio.wait({sent, receive_task}, return_when=asyncio.FIRST_COMPLETED)
        if not receive_task.done():
            with suppress(ConnectionError):  # the scanner can reply before it closes the connection
                await sent
        return await receive_task
    finally:
        sent.cancel()
        receive_task.cancel()
        await asyncio.gather(sent, receive_task, return_exceptions=True)
