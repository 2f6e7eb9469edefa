"""Who uses a store: servers, or one command that needs it for itself. Never both.

The lock of merganser/server/store/store_lock.py answers at once, but PostgreSQL forgets it at a
restart. The
registrations of processes last as long as their heartbeats, so they are asked as well.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from merganser.errors import Trouble
from merganser.server.store import store_lock
from merganser.settings.settings import Settings
from models.runtime import leases
from models.runtime.environment import World
from models.runtime.leases import StoreReserved


@asynccontextmanager
async def used_by_server(world: World, *, waits: bool = True) -> AsyncGenerator[None]:
    """Register this process, of a server or of a command that works beside servers.

    Raises Trouble while a command has the store for itself; if the process `waits`, once that
    command has shown for a while that it is alive.
    """
    ends = _patience(world) if waits else 0.0
    while True:
        try:
            await leases.ensure_registered(world)
            break
        except StoreReserved as reserved:
            if time.monotonic() >= ends:
                raise Trouble(str(reserved)) from reserved
            await leases.end_dead(world)
            await asyncio.sleep(world.process.beat)
    async with leases.registered(world):
        yield


@asynccontextmanager
async def used_alone(world: World, settings: Settings, purpose: str) -> AsyncGenerator[None]:
    """Have the store for this command alone. Trouble if any process of a server is alive.

    A process that gives no sign counts as dead after a while, which is waited for here.
    """
    async with store_lock.repairing(settings.store, purpose):
        if store_lock.lock_of(settings.store) is not None:
            await leases.end_exclusive(world)  # the lock of the file proves it
        process = world.process
        process.name, process.exclusive = purpose, purpose
        async with leases.registered(world):
            await leases.ensure_registered(world)
            ends = _patience(world)
            first = {row.id: row.beats for row in await leases.other_processes(world)}
            while others := await leases.other_processes(world):
                alive = [row for row in others if row.beats != first.get(row.id)]
                if alive or time.monotonic() >= ends:
                    named = ", ".join(f"{row.host} (pid {row.pid})" for row in alive or others)
                    raise Trouble(
                        f"a merganser uses this store at {named}: stop it, then {purpose}"
                    )
                await leases.end_dead(world)
                await asyncio.sleep(process.beat / 5)
            yield


def _patience(world: World) -> float:
    """Until when a process without heartbeats is watched, by the monotonic clock."""
    return time.monotonic() + 4 * world.process.dead_after
