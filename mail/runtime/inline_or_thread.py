"""Run CPU-bound jobs on the event loop if they are short, else in a thread.

A thread costs about as much time as a short job.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

Outcome = TypeVar("Outcome")
Kind = tuple[str, int]  # kind of work and user id
BRIEF = 0.002  # seconds of CPU time
FORGOTTEN = 0.9  # factor that the stored time shrinks by after a shorter run
MOST = 4096  # with a stored time

LONGEST = 0.02  # seconds after which a job on the event loop restarts in a thread

_deadline = threading.local()
_times: OrderedDict[Kind, float] = OrderedDict()  # longest recent CPU time


async def done(works: Mapping[Kind, Callable[[], Outcome]], *, near: bool) -> dict[Kind, Outcome]:
    """Run CPU-bound jobs and return their results by key.

    Jobs run on the event loop if their recent CPU time was below `INLINE_LIMIT` in sum and their
    input is in memory; otherwise in a thread. Jobs that exceed `INLINE_TIMEOUT` on the event loop
    are restarted in a thread.
    """
    found = None
    if near and sum(_times.get(key, BRIEF) for key in works) < BRIEF:
        found = _inline(works)
    if found is None:
        found = await asyncio.to_thread(lambda: _timed(works))
    for key, (took, _) in found.items():
        _times[key] = max(took, _times.pop(key, 0) * FORGOTTEN)
    while len(_times) > MOST:
        _times.popitem(last=False)
    return {key: outcome for key, (_, outcome) in found.items()}


class NotBrief(BaseException):
    """A job on the event loop takes too long. Handlers of Exception must not catch it."""


def check() -> None:
    """Raise InlineTimeExceeded if the current job runs on the event loop and takes too long.

    Loops over the content of a message must call this regularly.
    """
    until: float | None = getattr(_deadline, "until", None)
    if until is not None and time.thread_time() > until:
        raise NotBrief


def _inline(
    works: Mapping[Kind, Callable[[], Outcome]],
) -> dict[Kind, tuple[float, Outcome]] | None:
    """Run the jobs on the event loop. Returns None if they take too long."""
    _deadline.until = time.thread_time() + LONGEST
    try:
        return _timed(works)
    except NotBrief:
        return None
    finally:
        _deadline.until = None


def _timed(
    works: Mapping[Kind, Callable[[], Outcome]],
) -> dict[Kind, tuple[float, Outcome]]:
    """Run the jobs and return CPU time and result of each."""
    found = {}
    for key, work in works.items():
        begun = time.thread_time()
        outcome = work()
        found[key] = time.thread_time() - begun, outcome
    return found
