"""Other processes of a store, for tests."""

from dataclasses import replace
from datetime import datetime, timedelta

from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration

BEAT, DEAD_AFTER = 0.25, 4.0  # seconds; a heartbeat may be late on a busy machine


def another_process(
    world: Environment, *, ahead: timedelta = timedelta(0), name: str = "other"
) -> Environment:
    """Another process of the same store, whose clock is `ahead`."""

    def now() -> datetime:
        return world.now() + ahead

    process = ProcessRegistration(name=name, heartbeat_seconds=BEAT, dead_after_seconds=DEAD_AFTER)
    return replace(world, process=process, now=now)


async def taken_for_dead(world: Environment) -> None:
    """End this process's registration and leases, as another process does without heartbeats."""
    await leases.deregister_process(world)


async def free_after_two_looks(world: Environment) -> int:
    """Let a process look twice for leases that it has no work for; return how many it gave back."""
    assert await leases.free_stale_leases(world) == 0
    return await leases.free_stale_leases(world)
