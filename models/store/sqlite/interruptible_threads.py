"""Threads that read SQLite databases, and end a read whose caller is cancelled."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from models.observability.statement_counts import keep_count_in_thread
from models.store.read_slots import ReadSlots, current_read_owner

Result = TypeVar("Result")

# Seconds between interrupts of a cancelled read. One interrupt has no effect if it comes between
# two statements, or just before a statement starts.
INTERRUPT_INTERVAL = 0.02


class ReadCancelled(Exception):
    """Ends a read in its thread before its next statement. Nobody waits for its result."""


class InterruptibleRead:
    """A read in a thread, whose statement can be interrupted from the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None  # while a statement runs on it
        self._is_cancelled = False

    @contextmanager
    def allow_interrupt(self, connection: sqlite3.Connection) -> Generator[None]:
        """Let `interrupt` end the statement that the block runs on this connection.

        After the block no interrupt reaches the connection, so another read can use it. Raises
        ReadCancelled if the read is interrupted already.
        """
        with self._lock:
            if self._is_cancelled:
                raise ReadCancelled
            self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None

    def interrupt(self) -> None:
        """Interrupt the running statement, and prevent later ones."""
        with self._lock:
            self._is_cancelled = True
            if self._connection is not None:
                self._connection.interrupt()


class InterruptibleThreads:
    """Threads that run reads, of which each owner has a few at once.

    If the caller of a read is cancelled, its statement is interrupted, and its thread is free for
    the next read.
    """

    def __init__(self, thread_count: int, threads_per_owner: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(thread_count, name)
        self._slots = ReadSlots(threads_per_owner)
        self._cancelled_reads: dict[Future[Any], InterruptibleRead] = {}  # that have not ended

    async def run(self, work: Callable[[InterruptibleRead], Result]) -> Result:
        """Run a read in a thread as soon as its owner has a slot, and return its result."""
        owner, read = current_read_owner.get(), InterruptibleRead()
        await self._slots.acquire(owner)
        try:
            future = self._threads.submit(keep_count_in_thread(work), read)
        except BaseException:
            self._slots.release(owner)
            raise
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                self._slots.release(owner)
            else:
                self._cancelled_reads[future] = read
                self._interrupt_until_ended(future, owner)

    def _interrupt_until_ended(self, future: Future[Any], owner: Hashable) -> None:
        """Interrupt a cancelled read until its thread is free, then release the slot."""
        if future.done():
            del self._cancelled_reads[future]
            self._slots.release(owner)
            return
        self._cancelled_reads[future].interrupt()
        asyncio.get_running_loop().call_later(
            INTERRUPT_INTERVAL, self._interrupt_until_ended, future, owner
        )

    def close(self) -> None:
        """End the threads. Cancelled reads are interrupted, others end first."""
        running = set(self._cancelled_reads)
        while running:
            for future in running:
                self._cancelled_reads[future].interrupt()
            running = wait(running, INTERRUPT_INTERVAL).not_done
        self._threads.shutdown()
