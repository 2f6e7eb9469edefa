"""The reads of one operation: their owner, and the loads that must not outlive the operation."""

import asyncio
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from models.store.read_slots import current_read_owner


@dataclass(eq=False)
class OperationLoads:
    """The dataloader batches of an operation that are running.

    They run in tasks of their own, which the cancellation of the operation doesn't reach.
    """

    running: set[asyncio.Task[Any]] = field(default_factory=set)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Cancel the running batches, and those that are still to start.

        Their futures stay without a result: only the cancelled operation waits for them.
        """
        self.is_cancelled = True
        for task in self.running:
            task.cancel()


_current_loads: ContextVar[OperationLoads | None] = ContextVar("current_loads", default=None)


@contextmanager
def operation_reads(owner: Hashable) -> Generator[OperationLoads]:
    """Read for this owner in the block, and end its loads with it.

    If the block is left with a cancellation, or calls `cancel`, its loads are cancelled. A select
    of them is interrupted, so that it doesn't occupy the database for nobody.
    """
    loads = OperationLoads()
    loads_token, owner_token = _current_loads.set(loads), current_read_owner.set(owner)
    try:
        yield loads
    except asyncio.CancelledError:
        loads.cancel()
        raise
    finally:
        _current_loads.reset(loads_token)
        current_read_owner.reset(owner_token)


@contextmanager
def end_load_with_operation() -> Generator[None]:
    """Run a dataloader batch in the block, and cancel it with the operation of the current task."""
    loads, task = _current_loads.get(), asyncio.current_task()
    if loads is None or task is None or task in loads.running:
        yield
        return
    if loads.is_cancelled:
        raise asyncio.CancelledError
    loads.running.add(task)
    try:
        yield
    finally:
        loads.running.discard(task)
