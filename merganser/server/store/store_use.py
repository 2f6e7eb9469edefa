"""Use of a database by servers, or exclusively by one command.

The lock of merganser/server/store/store_lock.py answers at once, but is lost if PostgreSQL
restarts. Process registrations last as long as their heartbeats, so they are checked too.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from merganser.errors import CommandError
from merganser.server.store import store_lock
from merganser.settings.settings import Settings
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.leases import DatabaseReserved
from models.store.outages import skip_if_disk_full


@asynccontextmanager
async def register_process_beside_servers(
    environment: Environment, *, waits_for_exclusive_use: bool = True
) -> AsyncGenerator[None]:
    """Register this process, of a server or of a command that can run beside servers.

    Raises CommandError if a command uses the database exclusively. By default first waits until
    that command has ended, or has no heartbeats.
    """
    deadline = _heartbeat_deadline(environment) if waits_for_exclusive_use else 0.0
    while True:
        try:
            with skip_if_disk_full():  # the heartbeats register it
                await leases.ensure_process_registered(environment)
            break
        except DatabaseReserved as reserved:
            if time.monotonic() >= deadline:
                raise CommandError(str(reserved)) from reserved
            await leases.deregister_dead_processes_and_free_leases(environment)
            await asyncio.sleep(environment.process.heartbeat_seconds)
    async with leases.keep_process_registered(environment):
        yield


@asynccontextmanager
async def use_database_exclusively(
    environment: Environment, settings: Settings, purpose: str
) -> AsyncGenerator[None]:
    """Use the database exclusively for a command.

    Waits until processes without heartbeats count as dead. Raises CommandError with the purpose
    if another process is alive.
    """
    async with store_lock.lock_database_exclusively(settings.database_url, purpose):
        if store_lock.sqlite_lock_path(settings.database_url) is not None:
            # the file lock proves that they ended
            await leases.delete_exclusive_registrations(environment)
        process = environment.process
        process.name, process.exclusive_purpose = purpose, purpose
        async with leases.keep_process_registered(environment):
            await leases.ensure_process_registered(environment)
            deadline = _heartbeat_deadline(environment)
            first_heartbeats = {
                row.id: row.heartbeat_count
                for row in await leases.load_other_processes(environment)
            }
            while other_processes := await leases.load_other_processes(environment):
                live_processes = [
                    row
                    for row in other_processes
                    if row.heartbeat_count != first_heartbeats.get(row.id)
                ]
                if live_processes or time.monotonic() >= deadline:
                    holders = ", ".join(
                        f"{row.host} (pid {row.pid})" for row in live_processes or other_processes
                    )
                    raise CommandError(
                        f"Merganser servers use this database at {holders}: stop them, then "
                        f"{purpose}."
                    )
                await leases.deregister_dead_processes_and_free_leases(environment)
                await asyncio.sleep(process.heartbeat_seconds / 5)
            yield


def _heartbeat_deadline(environment: Environment) -> float:
    """The time of the monotonic clock after which a process without heartbeats is dead."""
    return time.monotonic() + 4 * environment.process.dead_after_seconds
