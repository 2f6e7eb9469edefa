"""The request to stop a worker. A worker looks at it between two pieces of work.

Each worker runs in a context with its own event, which its tasks inherit.
"""

import asyncio
import contextvars
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from models.events.wakeups import wait_for_any_event_or_timeout

_stop_event = contextvars.ContextVar[asyncio.Event | None]("worker_stop_event", default=None)


def create_worker_task(
    worker: Coroutine[Any, Any, None], stop: asyncio.Event
) -> "asyncio.Task[None]":
    """Start a worker. `is_worker_stopping` is true in it and in its tasks when `stop` is set."""
    context = contextvars.copy_context()
    context.run(_stop_event.set, stop)
    return asyncio.create_task(worker, context=context)


def is_worker_stopping() -> bool:
    """True if the worker that calls this must begin no more work. False outside a worker."""
    stop = _stop_event.get()
    return stop is not None and stop.is_set()


async def wait_for_event_or_worker_stop(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not longer than until the worker that calls this is to stop."""
    stop = _stop_event.get()
    await wait_for_any_event_or_timeout([event, stop] if stop else [event], seconds)


async def sleep_until_worker_stops(seconds: float) -> None:
    """Sleep, but not longer than until the worker that calls this is requested to stop."""
    stop = _stop_event.get()
    if stop is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
