"""Work that is done where we are for as long as it is brief: a thread costs as much again."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

Outcome = TypeVar("Outcome")
Kind = tuple[str, int]  # what is done, and for which account
BRIEF = 0.002  # seconds that others may wait
FORGOTTEN = 0.9  # what is left of the longest time, each time that it took less
MOST = 4096  # kinds of work whose times are kept

LONGEST = 0.02  # seconds after which a job on the event loop is begun again in a thread

_deadline = threading.local()
_times: OrderedDict[Kind, float] = OrderedDict()  # the longest of late, of our own processor


async def done(works: Mapping[Kind, Callable[[], Outcome]], *, near: bool) -> dict[Kind, Outcome]:
    """What each of these works, which wait for nothing, gives.

    Where all of them together have been brief so far they are done on the spot, else in a
    thread, as they are where they are not `near`, since this time it may take longer. Jobs that
    take too long on the spot are begun again in a thread.
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
    """A job on the event loop takes too long; handlers of Exception must not catch it."""


def check() -> None:
    """Raise NotBrief if this is a job on the event loop that takes too long.

    Loops whose length depends on a message call this once in a while.
    """
    until: float | None = getattr(_deadline, "until", None)
    if until is not None and time.thread_time() > until:
        raise NotBrief


def _inline(
    works: Mapping[Kind, Callable[[], Outcome]],
) -> dict[Kind, tuple[float, Outcome]] | None:
    """Do the jobs here; None if they take too long."""
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
    found = {}
    for key, work in works.items():
        begun = time.thread_time()
        outcome = work()
        found[key] = time.thread_time() - begun, outcome
    return found
