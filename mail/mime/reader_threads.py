"""Reading of messages in threads and processes, so that the event loop is not blocked."""

import asyncio
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from mail.mime.message_facts import MessageFacts, facts_from_message_bytes
from models.runtime.helper_process import HelperProcesses

MAX_INLINE_BYTES = 8 << 10  # bytes: the most expensive message takes some milliseconds
MAX_THREAD_BYTES = 1 << 20  # bytes: beyond, a thread would hold the interpreter's lock too long
READER_PROCESS = HelperProcesses(1, nice=5)  # small messages are read first

ReadResult = TypeVar("ReadResult")


async def read_message_facts(message: bytes | Path) -> MessageFacts:
    """Return the facts of a message, given as bytes or as the path of its file.

    Raises OSError if the file can't be read.
    """
    return await run_by_message_size(_facts_of_bytes_or_file, message)


async def run_by_message_size(
    function: Callable[[bytes | Path], ReadResult], message: bytes | Path
) -> ReadResult:
    """Call a module-level function on a message: inline, in a thread or in a process.

    The size decides: below 8 KiB inline, below 1 MiB in a thread. A path saves copying the bytes to
    the process. Raises OSError if the file can't be read.
    """
    if isinstance(message, Path):
        size = (await asyncio.to_thread(message.stat)).st_size
    else:
        size = len(message)
        if size < MAX_INLINE_BYTES:
            return function(message)
    if size < MAX_THREAD_BYTES:
        return await asyncio.to_thread(function, message)
    try:
        return await asyncio.wrap_future(READER_PROCESS.submit(function, message))
    except BrokenProcessPool:  # the process was killed; the next message gets a new one
        return await asyncio.to_thread(function, message)


async def close_readers() -> None:
    """Stop the process that reads large messages, if it runs."""
    await READER_PROCESS.close()


def _facts_of_bytes_or_file(message: bytes | Path) -> MessageFacts:
    return facts_from_message_bytes(message.read_bytes() if isinstance(message, Path) else message)
