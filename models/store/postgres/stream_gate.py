"""A limit on the transactions of a process that wait for the lock of one stream in PostgreSQL.

Each waits with a connection. Without a limit, the transactions of one locked user take all
connections, and those of other users get none.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from models.store.outages import StreamBusy

INSIDE = 2  # transactions with a connection: one holds the lock, the next one waits for it
PROBES = 3  # transactions with a connection for streams whose lock was not free in time
WAIT = 5.0  # that a transaction waits for a place


@dataclass
class Lane:
    """The transactions of one stream."""

    inside: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    is_stuck: bool = False  # its lock was not free in time: one transaction at a time tries


class StreamGate:
    """The queues of all streams that have transactions now."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}

    @asynccontextmanager
    async def enter(self, streams: Collection[int]) -> AsyncGenerator[None]:
        """Take a place in the queue of each stream.

        Places are taken in the order of the ids, as row locks are, so there is no deadlock. Raises
        StreamBusy after WAIT_SECONDS without a place.
        """
        taken: list[int] = []
        is_busy = is_free = False
        try:
            for stream in sorted(set(streams)):
                await self._take(stream)
                taken.append(stream)
            yield
        except StreamBusy:
            is_busy = len(taken) == 1 == len(set(streams))  # else it is unknown which one
            raise
        else:
            is_free = True
        finally:
            for stream in taken:
                self._leave(stream, is_busy=is_busy, is_free=is_free)

    async def _take(self, stream: int) -> None:
        lane = self._lanes.setdefault(stream, Lane())
        places = 1 if lane.is_stuck else INSIDE
        if lane.inside >= places or lane.waiting:
            await self._wait(stream, lane)
        elif lane.is_stuck and self._probes() >= PROBES:
            raise StreamBusy
        else:
            lane.inside += 1

    def _probes(self) -> int:
        """Count the transactions with a connection for stuck streams."""
        return sum(lane.inside for lane in self._lanes.values() if lane.is_stuck)

    async def _wait(self, stream: int, lane: Lane) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append(place)
        try:
            async with asyncio.timeout(WAIT):
                await place
        except BaseException as problem:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._leave(stream, is_busy=False)  # the place was assigned at the same moment
            elif place in lane.waiting:
                lane.waiting.remove(place)
                self._forget(stream, lane)
            if isinstance(problem, TimeoutError):
                raise StreamBusy from None
            raise

    def _leave(self, stream: int, *, is_busy: bool, is_free: bool = False) -> None:
        lane = self._lanes[stream]
        lane.inside -= 1
        lane.is_stuck = is_busy or (lane.is_stuck and not is_free)
        while lane.waiting and is_busy:
            place = lane.waiting.popleft()
            if not place.done():
                place.set_exception(StreamBusy())
        places = 1 if lane.is_stuck else INSIDE
        while lane.waiting and lane.inside < places:
            place = lane.waiting.popleft()
            if not place.done():
                lane.inside += 1
                place.set_result(None)
        self._forget(stream, lane)

    def _forget(self, stream: int, lane: Lane) -> None:
        if not (lane.inside or lane.waiting or lane.is_stuck):
            self._lanes.pop(stream, None)
