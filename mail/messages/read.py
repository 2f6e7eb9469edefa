"""Reading messages without holding up the event loop."""

import asyncio
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mail.messages.facts import Facts, facts
from models.apart import Apart

INLINE_BELOW = 64 << 10  # bytes: a fraction of a millisecond
THREAD_BELOW = 1 << 20  # bytes: beyond, a thread would hold the interpreter's lock too long
READERS = Apart(1)


async def read(message: bytes | Path) -> Facts:
    """Read a message, or the file it lies in: here, in a thread, or in a process of its own.

    A path saves the copy to that process. Raises OSError for a file that cannot be read.
    """
    if isinstance(message, Path):
        size = (await asyncio.to_thread(message.stat)).st_size
    else:
        size = len(message)
        if size < INLINE_BELOW:
            return facts(message)
    if size < THREAD_BELOW:
        return await asyncio.to_thread(_read, message)
    try:
        return await asyncio.wrap_future(READERS.submit(_read, message))
    except BrokenProcessPool:  # someone ended the process; the next message gets a new one
        return await asyncio.to_thread(_read, message)


async def close_readers() -> None:
    """End the process that reads large messages, if there is one."""
    await READERS.close()


def _read(message: bytes | Path) -> Facts:
    return facts(message.read_bytes() if isinstance(message, Path) else message)
