"""A background worker as a component: it can be stopped and started again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from merganser.server.shutdown import GracefulShutdown
from models.events import wakeups
from models.runtime import leases
from models.runtime.components import Component, ComponentKind, ComponentState
from models.runtime.environment import Environment
from models.runtime.worker_stop import create_worker_task

log = logging.getLogger("merganser")

WORKER_STOP_TIMEOUT = 25.0  # seconds, when the server stops
WORKER_FINISH_TIMEOUT = 660.0  # seconds, when the worker is held; RFC 5321 allows 600 after DATA

WorkerFunction = Callable[[asyncio.Event], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class WorkerDefinition:
    """A worker: a function that takes the event that asks it to stop, and how it is stopped.

    At the end of the server a worker is cancelled if `is_cancelled_at_end`: its changes are
    transactions.
    """

    name: str
    run: WorkerFunction
    can_be_held: bool = True
    is_cancelled_at_end: bool = True
    leased_table: Any = None  # the table of the rows that the worker leases


class WorkerComponent(Component):
    """A worker of this process. If it fails, the server stops."""

    def __init__(
        self, definition: WorkerDefinition, environment: Environment, shutdown: GracefulShutdown
    ) -> None:
        super().__init__(
            definition.name,
            ComponentKind.WORKER,
            environment.now,
            can_be_held=definition.can_be_held,
        )
        self.task: asyncio.Task[None] | None = None
        self._definition = definition
        self._environment = environment
        self._shutdown = shutdown
        self._stop = asyncio.Event()

    async def start_work(self) -> None:
        """Start the task of the worker."""
        self._stop = asyncio.Event()
        self.task = create_worker_task(self._definition.run(self._stop), self._stop)
        self.task.add_done_callback(self._stop_server_unless_expected)

    async def finish_work(self) -> None:
        """Wait until the worker has finished its current work, and end its leases."""
        if self.task is None:
            return
        self._stop.set()
        self._wake()
        await asyncio.wait([self.task], timeout=WORKER_FINISH_TIMEOUT)
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        if self._definition.leased_table is not None:
            await leases.free_leases_of_stopped_worker(
                self._environment, self._definition.leased_table
            )

    async def close(self) -> None:
        """Stop the worker, since the server ends. Its leases end with the registration."""
        self.ignore_holds()
        self._stop.set()
        if self.task is None:
            return
        if self._definition.is_cancelled_at_end:
            self.task.cancel()
        _, late_tasks = await asyncio.wait([self.task], timeout=WORKER_STOP_TIMEOUT)
        for task in late_tasks:
            task.cancel()
        await asyncio.gather(*late_tasks, return_exceptions=True)

    def _wake(self) -> None:
        """Wake the worker, so that it sees that it is to stop."""
        self._environment.wakeups.wake_workers()
        for worker_id in wakeups.WORKERS_OF_ALL_STREAMS:
            self._environment.wakeups.wake_followers(worker_id, 0)

    def _stop_server_unless_expected(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (task.exception() is None and self._stop.is_set()):
            return
        problem = task.exception() or RuntimeError("the worker returned")
        self.set_state(ComponentState.FAILED, type(problem).__name__)
        self._shutdown.stop_after_worker_error(problem)
