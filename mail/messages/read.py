"""Reading messages without holding up the event loop."""

import asyncio
import ctypes
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from pathlib import Path

from mail.messages.facts import Facts, facts

INLINE_BELOW = 64 << 10  # bytes: a fraction of a millisecond
PR_SET_PDEATHSIG = 1
THREAD_BELOW = 1 << 20  # bytes: beyond, a thread would hold the interpreter's lock too long


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
        return await asyncio.get_running_loop().run_in_executor(_pool(), _read, message)
    except BrokenProcessPool:  # someone ended the process; the next message gets a new one
        _pool.cache_clear()
        return await asyncio.to_thread(_read, message)


async def close_readers() -> None:
    """End the process that reads large messages, if there is one."""
    if _pool.cache_info().currsize:
        pool = _pool()
        _pool.cache_clear()
        await asyncio.to_thread(pool.shutdown, cancel_futures=True)


@cache
def _pool() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Be killed when the server is: nobody else would end us then. Linux only (prctl(2))."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(message: bytes | Path) -> Facts:
    return facts(message.read_bytes() if isinstance(message, Path) else message)
