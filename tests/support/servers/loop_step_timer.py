"""The CPU time of each step of the event loop."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

MAX_STEP_SECONDS = 0.05  # CPU time
MAX_TRIES = 3


@dataclass
class LoopSteps:
    """The longest step of an event loop's thread: its CPU seconds and its coroutine."""

    longest_seconds: float = 0.0
    longest_step: str = ""

    def __str__(self) -> str:
        return f"{self.longest_seconds * 1000:.0f} ms in {self.longest_step}"


async def measure_steps(
    action: Callable[[], Coroutine[Any, Any, Result]],
) -> tuple[Result, LoopSteps]:
    """Run an action in a new task, and measure all steps of the loop until it ends.

    Returns the first of `MAX_TRIES` runs without a step over `MAX_STEP_SECONDS`, else the last run:
    other load on the machine makes steps longer, never shorter. The steps of the calling task don't
    count: the first began earlier, and the last has not ended.
    """
    for _ in range(MAX_TRIES):
        with _measured_steps() as steps:
            result = await asyncio.create_task(action())
        if steps.longest_seconds <= MAX_STEP_SECONDS:
            break
    return result, steps


@contextmanager
def _measured_steps() -> Iterator[LoopSteps]:
    """Measure the CPU time of each callback that an asyncio loop runs in this thread.

    Garbage collection is off: it visits all objects of the process, and can happen in any callback.
    The wake-up of the loop by a thread is not measured: it runs no code of the product, and takes
    longer while other threads compute.
    """
    steps, run = LoopSteps(), asyncio.Handle._run  # noqa: SLF001

    def run_measured(handle: asyncio.Handle) -> None:
        started_at = time.thread_time()
        try:
            run(handle)
        finally:
            duration = time.thread_time() - started_at
            callback_name = getattr(getattr(handle, "_callback", None), "__name__", "")
            if callback_name != "_read_from_self" and duration > steps.longest_seconds:
                steps.longest_seconds, steps.longest_step = duration, _coroutine_name(handle)

    gc.disable()
    asyncio.Handle._run = run_measured  # type: ignore[assignment,method-assign]  # noqa: SLF001
    try:
        yield steps
    finally:
        gc.enable()
        asyncio.Handle._run = run  # type: ignore[method-assign]  # noqa: SLF001


def _coroutine_name(handle: asyncio.Handle) -> str:
    """The coroutine of the task that a callback belongs to, and where it waits."""
    callback: Any = getattr(handle, "_callback", None)
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(callback)
    frames = [f"{frame.f_code.co_qualname}:{frame.f_lineno}" for frame in task.get_stack()]
    return f"{task.get_coro()!r} {frames} {str(task)[-120:]}"
