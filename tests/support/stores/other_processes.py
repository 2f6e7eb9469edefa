"""Other processes of the same database, for tests."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import col

from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration
from models.runtime.server_processes import ServerProcess
from tests.support.time_limits import HANG_SECONDS

HEARTBEAT_SECONDS = 0.5
DEAD_AFTER_SECONDS = 4.0  # a heartbeat can be late on a busy machine


def make_other_process(
    environment: Environment, *, ahead: timedelta = timedelta(0), name: str = "other"
) -> Environment:
    """Make the environment of another process, whose clock is `ahead`."""

    def now() -> datetime:
        return environment.now() + ahead

    process = ProcessRegistration(
        name=name, heartbeat_seconds=HEARTBEAT_SECONDS, dead_after_seconds=DEAD_AFTER_SECONDS
    )
    return replace(environment, process=process, now=now)


async def load_registered_names(environment: Environment) -> list[str]:
    """Load the names of the registered processes, sorted."""
    rows = await environment.database.read(select(col(ServerProcess.name)))
    return sorted(row.name for row in rows)


async def wait_until_unregistered(environment: Environment, name: str) -> None:
    """Wait until another process has deregistered the process with this name."""
    async with asyncio.timeout(HANG_SECONDS):
        while name in await load_registered_names(environment):  # noqa: ASYNC110 - a row
            await asyncio.sleep(HEARTBEAT_SECONDS / 5)  # the wait takes DEAD_AFTER_SECONDS


async def deregister_as_dead(environment: Environment) -> None:
    """Deregister this process and free its leases, as others do when its heartbeats stop."""
    await leases.deregister_process_and_free_leases(environment)


async def free_leases_after_two_looks(environment: Environment) -> int:
    """Free stale leases in two rounds, as a process does; return how many the second one freed."""
    assert await leases.free_own_leases_found_stale_twice(environment) == 0
    return await leases.free_own_leases_found_stale_twice(environment)
