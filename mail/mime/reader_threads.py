"""Reading of messages in threads and processes, so that the event loop is not blocked."""

import asyncio
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from mail.mime.message_facts import Facts, facts
from models.runtime.helper_process import Apart

INLINE_BELOW = 8 << 10  # bytes: the most expensive message takes some milliseconds
THREAD_BELOW = 1 << 20  # bytes: beyond, a thread would hold the interpreter's lock too long
READERS = Apart(1, nice=5)  # small messages are read first

ReadResult = TypeVar("ReadResult")


async def read(message: bytes | Path) -> Facts:
    """Return the facts of a message, given as bytes or as the path of its file.

    Raises OSError if the file can't be read.
    """
    return await worked(_read, message)


async def worked(work: Callable[[bytes | Path], ReadResult], message: bytes | Path) -> ReadResult:
    """Call a module-level function on a message: inline, in a thread or in a process.

    The size decides: below 8 KiB inline, below 1 MiB in a thread. A path saves copying the bytes to
    the process. Raises OSError if the file can't be read.
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
    except BrokenProcessPool:  # the process was killed; the next message gets a new one
        return await asyncio.to_thread(work, message)


async def close_readers() -> None:
    """Stop the process that reads large messages, if it runs."""
    await READERS.close()


def _read(message: bytes | Path) -> Facts:
    return facts(message.read_bytes() if isinstance(message, Path) else message)
