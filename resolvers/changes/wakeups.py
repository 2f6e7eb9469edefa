"""Receive the wake-ups of other processes on the same database."""

import asyncio
import logging
from contextlib import suppress

from models.runtime.environment import World
from resolvers.changes import stream_reader

log = logging.getLogger(__name__)

LOOK = 1.0  # between checks for changes while the event bus is disconnected


async def hear(world: World) -> None:
    """Receive wake-ups until cancelled; poll while disconnected, and once after a reconnect."""
    wakeups, joined = world.wakeups, asyncio.Event()
    hearing = asyncio.create_task(wakeups.hear(joined.set))
    try:
        while not hearing.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await joined.wait()
            if joined.is_set():
                joined.clear()
                wakeups.recalled(None)
            elif not wakeups.dead:
                continue
            await _look(world)
    finally:
        hearing.cancel()
        await asyncio.wait([hearing])


async def _look(world: World) -> None:
    world.wakeups.rouse()
    try:
        await stream_reader.look(world)
    except Exception:  # keep running: the next attempt can succeed
        log.exception("the journal could not be read")
