"""Remove submissions from the queue and bounce them to their senders."""

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import Job, Result
from mail.queue import message_body, recipient_leases
from mail.queue.bulk_updates import free
from mail.queue.delivery_results import settle
from models.queue.tables import Delivery, DeliveryState
from models.runtime import leases
from models.runtime.environment import Turn, World

REMOVED = Result(DeliveryState.BOUNCED, 554, "5.7.1 Removed from the queue")


async def give_back(world: World, ids: Sequence[int]) -> int:
    """Bounce the unleased queue entries of these submissions. Returns their number.

    The entries are leased first, so that no worker sends a message that is reported as unsent.
    """
    lease = world.key()
    jobs = await _taken(world, ids, lease)
    recipients = [recipient.delivery_id for job in jobs for recipient in job.recipients]
    with leases.in_use(world, *recipients):
        for job in jobs:
            results = {recipient.delivery_id: REMOVED for recipient in job.recipients}
            await settle(world, job, results, await message_body.head(world, job))
    return len(recipients)


async def _taken(world: World, ids: Sequence[int], lease: int) -> Sequence[Job]:
    """Lease the open entries of these submissions that no process holds. Returns their jobs."""
    process_id = await leases.ensure_registered(world)

    def lease_entries(turn: Turn) -> Sequence[Job]:
        asked = select(col(Delivery.id)).where(col(Delivery.submission_id).in_(ids), *free())
        locked = asked.order_by(col(Delivery.id)).with_for_update(skip_locked=True)
        keys = turn.connection.execute(locked).scalars().all()
        these = update(Delivery).where(col(Delivery.id).in_(keys), leases.is_registered(process_id))
        turn.connection.execute(these.values(**leases.held(process_id, lease), turn_at=None))
        return recipient_leases.held_under(turn, lease)

    return await world.apply(lease_entries)
