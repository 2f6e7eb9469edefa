"""The queue of results that wait for one connection."""

import asyncio
import logging
from collections import deque
from typing import Generic, Protocol, TypeVar

from strawberry.http.exceptions import WebSocketDisconnected

from graph.subscriptions.result_stream import Told
from models.observability import metrics

log = logging.getLogger(__name__)

OVERFLOWS = metrics.counter(
    "merganser_subscription_overflows", "Connections whose waiting results were dropped."
)
MOST = 64
ROOM = 1 << 20


class Taker(Protocol):
    """A receiver of the results of one operation."""

    async def deliver(self, told: Told | None) -> None:
        """Send a result to the client, None for the end; returns when it is sent."""

    def fall(self) -> None:
        """Handle that results of this operation were dropped from a full queue."""

    def resume(self) -> None:
        """Handle that the connection accepts results again after a drop."""


For = TypeVar("For", bound=Taker)


class Outbox(Generic[For]):
    """A bounded queue of results with a task that runs while results wait.

    `put` never waits. If the queue is full, all results are dropped, and their consumers read
    them again when the connection has accepted its current result.
    """

    __slots__ = ("_fallen", "_size", "_task", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[tuple[For, Told | None]] | None = None
        self._fallen: dict[For, None] | None = None
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, taker: For, told: Told | None) -> None:
        """Add a result of a consumer; None is the end of its operation."""
        if self._task is None:
            self._task = asyncio.create_task(self._flush(taker, told))
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((taker, told))
        self._size += len(told.text) if told else 0
        if len(self._waiting) > MOST or self._size > ROOM:
            self._drop(self._waiting)

    def close(self) -> None:
        """Drop all results and end the task, since the connection is closed."""
        self._waiting = self._fallen = None
        if self._task:
            self._task.cancel()
            self._task = None

    def _drop(self, waiting: deque[tuple[For, Told | None]]) -> None:
        if self._fallen is None:
            self._fallen = {}
        for taker, _ in waiting:
            if taker not in self._fallen:
                self._fallen[taker] = None
                taker.fall()
        waiting.clear()
        OVERFLOWS.add()
        self._size = 0

    async def _flush(self, taker: For, told: Told | None) -> None:
        try:
            await taker.deliver(told)
            while self._waiting:
                taker, told = self._waiting.popleft()
                self._size -= len(told.text) if told else 0
                await taker.deliver(told)
        except WebSocketDisconnected:
            self._waiting = self._fallen = None
        except Exception:  # the edge of a task; the connection handles its own end
            log.exception("a connection could not be served")
            self._waiting = self._fallen = None
        self._task = None
        fallen, self._fallen, self._waiting, self._size = self._fallen, None, None, 0
        for each in fallen or ():
            each.resume()
