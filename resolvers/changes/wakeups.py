"""Hearing what other processes do to the same store."""

import asyncio
import logging
from contextlib import suppress

from models.runtime.environment import World
from resolvers.changes import stream_reader

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks while we hear nothing of the others


async def hear(world: World) -> None:
    """Hear the others until cancelled; look by ourselves while we do not, and once we do again."""
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
    except Exception:  # a listener's edge: the next look may go well
        log.exception("the journal could not be read")
