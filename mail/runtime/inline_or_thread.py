"""Run CPU-bound jobs on the event loop if they are short, else in a thread.

A thread costs about as much time as a short job.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

JobResult = TypeVar("JobResult")
JobKey = tuple[str, int]  # kind of work and user id
INLINE_LIMIT = 0.002  # seconds of CPU time
DECAY = 0.9  # factor that the stored time shrinks by after a shorter run
MAX_JOB_KEYS = 4096  # with a stored time

INLINE_TIMEOUT = 0.02  # seconds after which a job on the event loop restarts in a thread

_deadline = threading.local()
_cpu_times: OrderedDict[JobKey, float] = OrderedDict()  # longest recent CPU time


async def run_inline_or_in_thread(
    jobs: Mapping[JobKey, Callable[[], JobResult]], *, in_memory: bool
) -> dict[JobKey, JobResult]:
    """Run CPU-bound jobs and return their results by key.

    Jobs run on the event loop if their recent CPU time was below `INLINE_LIMIT` in sum and their
    input is in memory; otherwise in a thread. Jobs that exceed `INLINE_TIMEOUT` on the event loop
    are restarted in a thread.
    """
    results = None
    if in_memory and sum(_cpu_times.get(key, INLINE_LIMIT) for key in jobs) < INLINE_LIMIT:
        results = _run_inline_unless_slow(jobs)
    if results is None:
        results = await asyncio.to_thread(lambda: _run_and_measure_cpu_time(jobs))
    for key, (cpu_time, _) in results.items():
        _cpu_times[key] = max(cpu_time, _cpu_times.pop(key, 0) * DECAY)
    while len(_cpu_times) > MAX_JOB_KEYS:
        _cpu_times.popitem(last=False)
    return {key: outcome for key, (_, outcome) in results.items()}


class InlineTimeExceeded(BaseException):
    """A job on the event loop takes too long. Handlers of Exception must not catch it."""


def require_inline_time_left() -> None:
    """Raise InlineTimeExceeded if the current job runs on the event loop and takes too long.

    Loops over the content of a message must call this regularly.
    """
    deadline: float | None = getattr(_deadline, "until", None)
    if deadline is not None and time.thread_time() > deadline:
        raise InlineTimeExceeded


def _run_inline_unless_slow(
    jobs: Mapping[JobKey, Callable[[], JobResult]],
) -> dict[JobKey, tuple[float, JobResult]] | None:
    """Run the jobs on the event loop. Returns None if they take too long."""
    _deadline.until = time.thread_time() + INLINE_TIMEOUT
    try:
        return _run_and_measure_cpu_time(jobs)
    except InlineTimeExceeded:
        return None
    finally:
        _deadline.until = None


def _run_and_measure_cpu_time(
    jobs: Mapping[JobKey, Callable[[], JobResult]],
) -> dict[JobKey, tuple[float, JobResult]]:
    """Run the jobs and return CPU time and result of each."""
    results = {}
    for key, job in jobs.items():
        started_at = time.thread_time()
        outcome = job()
        results[key] = time.thread_time() - started_at, outcome
    return results
