"""Reading messages without holding up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from mail.mime.message_facts import Facts, facts
from models.runtime.helper_process import Apart

INLINE_BELOW = 8 << 10  # bytes: the most expensive message takes some milliseconds
THREAD_BELOW = 1 << 20  # bytes: beyond, a thread would hold the interpreter's lock too long
READERS = Apart(1, nice=5)  # what is small goes first

Outcome = TypeVar("Outcome")


async def read(message: bytes | Path) -> Facts:
    """Read a message, or the file it lies in. Raises OSError for a file that cannot be read."""
    return await worked(_read, message)


async def worked(work: Callable[[bytes | Path], Outcome], message: bytes | Path) -> Outcome:
    """Do `work`, a function of a module: here, in a thread, or in a process of its own.

    A path saves the copy to that process. Raises OSError for a file that cannot be read.
    """
    if isinstance(message, Path):
        size = (await asyncio.to_thread(message.stat)).st_size
    else:
        size = len(message)
        if size < INLINE_BELOW:
            return work(message)
    if size < THREAD_BELOW:
        return await asyncio.to_thread(work, message)
    try:
        return await asyncio.wrap_future(READERS.submit(work, message))
    except BrokenProcessPool:  # someone ended the process; the next message gets a new one
        return await asyncio.to_thread(work, message)


async def close_readers() -> None:
    """End the process that reads large messages, if there is one."""
    await READERS.close()


def _read(message: bytes | Path) -> Facts:
    return facts(message.read_bytes() if isinstance(message, Path) else message)
