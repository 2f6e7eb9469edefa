"""Use of a database by servers, or exclusively by one command.

The lock of merganser/server/store/store_lock.py answers at once, but is lost if PostgreSQL
restarts. Process registrations last as long as their heartbeats, so they are checked too.
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
async def used_by_server(environment: World, *, waits: bool = True) -> AsyncGenerator[None]:
    """Register this process, of a server or of a command that can run beside servers.

    Raises CommandError if a command uses the database exclusively. By default first waits until
    that command has ended, or has no heartbeats.
    """
    ends = _patience(environment) if waits else 0.0
    while True:
        try:
            await leases.ensure_registered(environment)
            break
        except StoreReserved as reserved:
            if time.monotonic() >= ends:
                raise Trouble(str(reserved)) from reserved
            await leases.end_dead(environment)
            await asyncio.sleep(environment.process.beat)
    async with leases.registered(environment):
        yield


@asynccontextmanager
async def used_alone(environment: World, settings: Settings, purpose: str) -> AsyncGenerator[None]:
    """Use the database exclusively for a command.

    Waits until processes without heartbeats count as dead. Raises CommandError with the purpose
    if another process is alive.
    """
    async with store_lock.repairing(settings.store, purpose):
        if store_lock.lock_of(settings.store) is not None:
            await leases.end_exclusive(environment)  # the file lock proves that they ended
        process = environment.process
        process.name, process.exclusive = purpose, purpose
        async with leases.registered(environment):
            await leases.ensure_registered(environment)
            ends = _patience(environment)
            first = {row.id: row.beats for row in await leases.other_processes(environment)}
            while others := await leases.other_processes(environment):
                alive = [row for row in others if row.beats != first.get(row.id)]
                if alive or time.monotonic() >= ends:
                    named = ", ".join(f"{row.host} (pid {row.pid})" for row in alive or others)
                    raise Trouble(
                        f"a merganser uses this store at {named}: stop it, then {purpose}"
                    )
                await leases.end_dead(environment)
                await asyncio.sleep(process.beat / 5)
            yield


def _patience(environment: World) -> float:
    """The time of the monotonic clock after which a process without heartbeats is dead."""
    return time.monotonic() + 4 * environment.process.dead_after
