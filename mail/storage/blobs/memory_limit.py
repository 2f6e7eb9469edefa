"""A limit on the bytes that concurrent readers hold in memory."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class MemoryLimit:
    """A number of bytes that concurrent readers share, in the order of their requests.

    A request for more than all bytes waits until no other reader holds any.
    """

    def __init__(self, size: int) -> None:
        self.total_bytes = size
        self.free_bytes = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, byte_count: int) -> AsyncGenerator[None]:
        """Reserve bytes in the context. A reader must not nest two reservations."""
        byte_count = min(byte_count, self.total_bytes)
        await self._acquire(byte_count)
        try:
            yield
        finally:
            self._release(byte_count)

    async def _acquire(self, count: int) -> None:
        if not self._waiting and count <= self.free_bytes:
            self.free_bytes -= count
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((count, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release(count)
            else:
                self._waiting.remove((count, granted))
                self._release(0)
            raise

    def _release(self, count: int) -> None:
        self.free_bytes += count
        while self._waiting and self._waiting[0][0] <= self.free_bytes:
            granted, waiter = self._waiting.popleft()
            if not waiter.done():
                self.free_bytes -= granted
                waiter.set_result(None)
