"""What waits for one connection."""

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
MOST = 64  # results that wait for one connection
ROOM = 1 << 20  # characters of them


class Taker(Protocol):
    """Whom a result is for."""

    async def deliver(self, told: Told | None) -> None:
        """Hand it on; returns once it was taken."""

    def fall(self) -> None:
        """Be told that something for it was dropped."""

    def resume(self) -> None:
        """Be told that the connection takes again."""


For = TypeVar("For", bound=Taker)


class Outbox(Generic[For]):
    """A queue with bounds. Whoever puts never waits; there is a task only while there is work.

    Where it is full all of it is dropped, and those it was for go on by themselves once the
    connection has taken what it is at.
    """

    __slots__ = ("_fallen", "_size", "_task", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[tuple[For, Told | None]] | None = None
        self._fallen: dict[For, None] | None = None
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, taker: For, told: Told | None) -> None:
        """Send this when its turn comes; None is the end."""
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
        """Drop everything: nobody is there any more."""
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
        except Exception:  # the edge of a task; whose connection it is ends by itself
            log.exception("a connection could not be served")
            self._waiting = self._fallen = None
        self._task = None
        fallen, self._fallen, self._waiting, self._size = self._fallen, None, None, 0
        for each in fallen or ():
            each.resume()
