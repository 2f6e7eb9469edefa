"""A limit on the bytes that concurrent readers hold in memory."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class ByteRoom:
    """A number of bytes that concurrent readers share, in the order of their requests.

    A request for more than all bytes waits until no other reader holds any.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, count: int) -> AsyncGenerator[None]:
        """Reserve bytes in the context. A reader must not nest two reservations."""
        count = min(count, self.size)
        await self._acquire(count)
        try:
            yield
        finally:
            self._release(count)

    async def _acquire(self, count: int) -> None:
        if not self._waiting and count <= self.free:
            self.free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(count)
            else:
                self._waiting.remove((count, turn))
                self._release(0)
            raise

    def _release(self, count: int) -> None:
        self.free += count
        while self._waiting and self._waiting[0][0] <= self.free:
            granted, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= granted
                turn.set_result(None)
