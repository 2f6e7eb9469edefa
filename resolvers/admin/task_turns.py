"""The turns of the tasks that one process runs at the same time.

A process runs one task of each account. Their steps run in turns, a few at a time. If more accounts
have tasks than the process may run at the same time, a task leaves its place after some seconds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from models.admin.tasks import TaskKind
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow
from resolvers.admin import task_queue

MAX_RUNNING_TASKS = 16  # of one process, each of another account
MAX_CONCURRENT_STEPS = 4
TURN_SECONDS = 2.0  # after this time a task leaves its place if another account waits for one

log = logging.getLogger(__name__)


@dataclass
class TaskTurns:
    """The running tasks of a process, by account, and the turns of their steps."""

    step_slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_STEPS)
    )  # first come, first served
    running: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    other_account_waits: bool = False  # and all places are taken

    def must_leave_place(self, begun_at: float) -> bool:
        """True if a task that began at this time of the event loop must leave its place."""
        seconds = asyncio.get_running_loop().time() - begun_at
        return self.other_account_waits and seconds >= TURN_SECONDS

    async def start_waiting_tasks(
        self,
        environment: Environment,
        kinds: Collection[TaskKind],
        run_task: Callable[[ColumnRow], Awaitable[None]],
        wakeup: asyncio.Event,
    ) -> None:
        """Start waiting tasks of accounts without a running task. `wakeup` is set when one ends."""
        while len(self.running) < MAX_RUNNING_TASKS and not is_worker_stopping():
            task = await task_queue.lease_next_task(environment, kinds, self.running.keys())
            if task is None:
                self.other_account_waits = False
                return
            account = task_queue.account_of_task(task)
            work = self._run_and_leave_place(task, account, run_task, wakeup)
            self.running[account] = asyncio.create_task(work)
        self.other_account_waits = await task_queue.has_waiting_task(
            environment, kinds, self.running.keys()
        )

    async def _run_and_leave_place(
        self,
        task: ColumnRow,
        account: int,
        run_task: Callable[[ColumnRow], Awaitable[None]],
        wakeup: asyncio.Event,
    ) -> None:
        try:
            await run_task(task)
        except Exception:  # it is retried later, after the others
            log.exception("Could not continue the task", extra={"task": task.id, "kind": task.kind})
        finally:
            del self.running[account]
            wakeup.set()

    async def wait_for_running_tasks(self) -> None:
        """Wait until each running task has finished its step, after the request to stop."""
        await asyncio.gather(*self.running.values())

    async def cancel_running_tasks(self) -> None:
        """Cancel the running tasks and wait for their end."""
        tasks = list(self.running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
