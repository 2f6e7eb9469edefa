"""The queue of results that wait for one connection."""

import asyncio
import logging
from collections import deque
from typing import Generic, Protocol, TypeVar

from strawberry.http.exceptions import WebSocketDisconnected

from graph.subscriptions.result_stream import StreamResult
from models.observability import metrics

log = logging.getLogger(__name__)

OVERFLOWS = metrics.counter(
    "merganser_subscription_overflows", "Connections whose waiting results were dropped."
)
MAX_WAITING_RESULTS = 64
MAX_WAITING_CHARACTERS = 1 << 20


class ResultConsumer(Protocol):
    """A receiver of the results of one operation."""

    async def deliver(self, result: StreamResult | None) -> None:
        """Send a result to the client, None for the end; returns when it is sent."""

    def on_results_dropped(self) -> None:
        """Handle that results of this operation were dropped from a full queue."""

    def read_again_alone(self) -> None:
        """Read again from the last delivered result: the connection accepts results again."""


Consumer = TypeVar("Consumer", bound=ResultConsumer)


class ResultQueue(Generic[Consumer]):
    """A bounded queue of results with a task that runs while results wait.

    `put` never waits. If the queue is full, all results are dropped, and their consumers read
    them again when the connection has accepted its current result.
    """

    __slots__ = ("_consumers_to_read_again", "_size", "_task", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[tuple[Consumer, StreamResult | None]] | None = None
        self._consumers_to_read_again: dict[Consumer, None] | None = None
        self._size = 0
        self._task: asyncio.Task[None] | None = None

    def put_dropping_all_if_full(self, consumer: Consumer, result: StreamResult | None) -> None:
        """Add a result of a consumer; None is the end of its operation."""
        if self._task is None:
            self._task = asyncio.create_task(
                self._deliver_result_or_end_then_drain_queue(consumer, result)
            )
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((consumer, result))
        self._size += len(result.json_text) if result else 0
        if len(self._waiting) > MAX_WAITING_RESULTS or self._size > MAX_WAITING_CHARACTERS:
            self._drop_waiting_and_notify_consumers(self._waiting)

    def read_again_when_empty(self, consumer: Consumer) -> None:
        """Let a consumer read again after all waiting results have been delivered."""
        if self._task is None:
            consumer.read_again_alone()
            return
        if self._consumers_to_read_again is None:
            self._consumers_to_read_again = {}
        self._consumers_to_read_again[consumer] = None

    def close(self) -> None:
        """Drop all results and end the task, since the connection is closed."""
        self._waiting = self._consumers_to_read_again = None
        if self._task:
            self._task.cancel()
            self._task = None

    def _drop_waiting_and_notify_consumers(
        self, waiting: deque[tuple[Consumer, StreamResult | None]]
    ) -> None:
        if self._consumers_to_read_again is None:
            self._consumers_to_read_again = {}
        for taker, _ in waiting:
            if taker not in self._consumers_to_read_again:
                self._consumers_to_read_again[taker] = None
                taker.on_results_dropped()
        waiting.clear()
        OVERFLOWS.add()
        self._size = 0

    async def _deliver_result_or_end_then_drain_queue(
        self, consumer: Consumer, result: StreamResult | None
    ) -> None:
        try:
            await consumer.deliver(result)
            while self._waiting:
                consumer, result = self._waiting.popleft()
                self._size -= len(result.json_text) if result else 0
                await consumer.deliver(result)
        except WebSocketDisconnected:
            self._waiting = self._consumers_to_read_again = None
        except Exception:  # the edge of a task; the connection handles its own end
            log.exception("Connection failed with an internal error")
            self._waiting = self._consumers_to_read_again = None
        self._task = None
        dropped, self._consumers_to_read_again, self._waiting, self._size = (
            self._consumers_to_read_again,
            None,
            None,
            0,
        )
        for event in dropped or ():
            event.read_again_alone()
