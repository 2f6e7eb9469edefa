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

MAX_PER_STREAM = 2  # transactions with a connection: one holds the lock, the next one waits for it
MAX_PROBES = 3  # transactions with a connection for streams whose lock was not free in time
WAIT_SECONDS = 5.0  # that a transaction waits for a place


@dataclass
class StreamQueue:
    """The transactions of one stream."""

    active_count: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    is_stuck: bool = False  # its lock was not free in time: one transaction at a time tries


class StreamGate:
    """The queues of all streams that have transactions now."""

    def __init__(self) -> None:
        self._queues: dict[int, StreamQueue] = {}

    @asynccontextmanager
    async def hold_places(self, stream_ids: Collection[int]) -> AsyncGenerator[None]:
        """Take a place in the queue of each stream.

        Places are taken in the order of the ids, as row locks are, so there is no deadlock. Raises
        StreamBusy after WAIT_SECONDS without a place.
        """
        taken_places: list[int] = []
        has_lock_timed_out = has_got_lock = False
        try:
            for stream in sorted(set(stream_ids)):
                await self._take_place(stream)
                taken_places.append(stream)
            yield
        except StreamBusy:
            # else it is unknown which one
            has_lock_timed_out = len(taken_places) == 1 == len(set(stream_ids))
            raise
        else:
            has_got_lock = True
        finally:
            for stream in taken_places:
                self._release_place_and_admit_waiters(
                    stream, has_lock_timed_out=has_lock_timed_out, has_got_lock=has_got_lock
                )

    async def _take_place(self, stream_id: int) -> None:
        lane = self._queues.setdefault(stream_id, StreamQueue())
        place_count = 1 if lane.is_stuck else MAX_PER_STREAM
        if lane.active_count >= place_count or lane.waiting:
            await self._wait_for_place(stream_id, lane)
        elif lane.is_stuck and self._count_probes() >= MAX_PROBES:
            raise StreamBusy
        else:
            lane.active_count += 1

    def _count_probes(self) -> int:
        """Count the transactions with a connection for stuck streams."""
        return sum(lane.active_count for lane in self._queues.values() if lane.is_stuck)

    async def _wait_for_place(self, stream_id: int, queue: StreamQueue) -> None:
        admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(admission)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await admission
        except BaseException as problem:
            if admission.done() and not admission.cancelled() and admission.exception() is None:
                # the place was assigned at the same moment
                self._release_place_and_admit_waiters(stream_id, has_lock_timed_out=False)
            elif admission in queue.waiting:
                queue.waiting.remove(admission)
                self._drop_if_unused(stream_id, queue)
            if isinstance(problem, TimeoutError):
                raise StreamBusy from None
            raise

    def _release_place_and_admit_waiters(
        self, stream_id: int, *, has_lock_timed_out: bool, has_got_lock: bool = False
    ) -> None:
        """Free the place of a transaction, and admit waiting transactions.

        If the transaction waited for the lock until its timeout, all waiting transactions get
        StreamBusy. From then on one transaction at a time is admitted, until one has got the lock.
        """
        lane = self._queues[stream_id]
        lane.active_count -= 1
        lane.is_stuck = has_lock_timed_out or (lane.is_stuck and not has_got_lock)
        while lane.waiting and has_lock_timed_out:
            admission = lane.waiting.popleft()
            if not admission.done():
                admission.set_exception(StreamBusy())
        place_count = 1 if lane.is_stuck else MAX_PER_STREAM
        while lane.waiting and lane.active_count < place_count:
            admission = lane.waiting.popleft()
            if not admission.done():
                lane.active_count += 1
                admission.set_result(None)
        self._drop_if_unused(stream_id, lane)

    def _drop_if_unused(self, stream_id: int, queue: StreamQueue) -> None:
        if not (queue.active_count or queue.waiting or queue.is_stuck):
            self._queues.pop(stream_id, None)
