"""Leases of this process that the store has and no work of this process belongs to.

A commit can be lost after it was reported: an asynchronous standby that replaces the primary may
have the claim of a recipient and lack its result. A commit can also succeed without an answer. A
lease ends when its holder stops, so without `free_stale` such a recipient would wait for that.
"""

import asyncio
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from sqlalchemy import select, update
from sqlmodel import col

from models.prepared import Prepared, number
from models.queue import Delivery
from models.runtime import leases
from models.store.outages import StoreUnavailable
from models.wakeups import QUEUE
from models.world import Turn, World

log = logging.getLogger(__name__)

_HELD = Prepared(
    select(col(Delivery.id), col(Delivery.lease)).where(
        col(Delivery.lease).is_not(None), col(Delivery.holder) == number("process")
    )
)


@contextmanager
def lease_in_use(world: World, lease: int) -> Generator[None]:
    """Keep a lease from being freed while a claim, or work that is in no lane, uses it."""
    world.process.leases_in_use.add(lease)
    try:
        yield
    finally:
        world.process.leases_in_use.discard(lease)


async def free_stale(world: World) -> int:
    """Give back the recipients that this process holds and does not work on; return how many."""
    process = world.process
    if process.id is None:
        return 0
    rows: Sequence[tuple[int, int]] = [
        (row.id, row.lease) for row in await world.database.find(_HELD, {"process": process.id})
    ]
    if not rows or process.abandoned:  # an abandoned lease is given back after a pause
        return 0
    under_way = {key for list_work in process.under_way for key in list_work()}
    stale = [
        (key, lease)
        for key, lease in rows
        if lease not in process.leases_in_use and key not in under_way
    ]
    if not stale:
        return 0

    def unit(turn: Turn) -> int:
        many = 0
        for key, lease in stale:  # a result that was written meanwhile has ended the lease
            this = update(Delivery).where(col(Delivery.id) == key, col(Delivery.lease) == lease)
            many += turn.connection.execute(this.values(**leases.freed(Delivery))).rowcount
        turn.bells.add(QUEUE)
        return many

    many = await world.apply(unit)
    if many:
        log.warning("leases without work were given back", extra={"recipients": many})
    return many


async def free_stale_regularly(world: World) -> None:
    """Free stale leases as often as this process sends heartbeats, without end."""
    while True:
        await asyncio.sleep(world.process.beat)
        try:
            await free_stale(world)
        except StoreUnavailable:  # the outage log has noted it
            continue
        except Exception:  # the next look may succeed
            log.exception("stale leases could not be freed")
