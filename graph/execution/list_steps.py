"""Completion of long lists in steps, between which the event loop serves other requests."""

import asyncio
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from time import thread_time
from typing import Any

# Dataloaders batch the keys of one step: most requests need no second step.
MAX_STEP_CPU_SECONDS = 0.02
MAX_ITEMS_PER_CALL = 250  # of a list, completed by one call of generated code


class StepClock:
    """Measures the CPU time of the current step of the event loop."""

    __slots__ = ("_started",)

    def __init__(self) -> None:
        self._started: float | None = None

    def start_step_or_check_if_over(self) -> bool:
        """True if the current step has taken MAX_STEP_CPU_SECONDS since the first call in it."""
        if self._started is None:
            self._started = thread_time()
            asyncio.get_running_loop().call_soon(self._reset)
            return False
        return thread_time() - self._started > MAX_STEP_CPU_SECONDS

    def _reset(self) -> None:
        self._started = None

    async def yield_to_event_loop(self) -> None:
        """Let the event loop run other tasks."""
        await asyncio.sleep(0)
        self._started = None


def close_unstarted_coroutines(value: Any) -> None:
    """Close the unstarted coroutines in a value, and the coroutines in their variables.

    Python warns of a coroutine that is neither awaited nor closed. Closing one does not close
    the coroutines that it holds in its variables.
    """
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif iscoroutine(value) and value.cr_frame and getcoroutinestate(value) == CORO_CREATED:
            values += value.cr_frame.f_locals.values()
            value.close()
