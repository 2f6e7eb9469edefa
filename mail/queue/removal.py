"""Remove submissions from the queue and bounce them to their senders."""

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult
from mail.queue import held_messages, message_body, recipient_leases
from mail.queue.bulk_updates import unleased_open_conditions
from mail.queue.delivery_results import record_results_and_report
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment

REMOVED_RESULT = DeliveryResult(DeliveryState.BOUNCED, 554, "5.7.1 Removed from the queue")


async def bounce_unleased_queue_entries(
    environment: Environment, submission_ids: Sequence[int]
) -> int:
    """Bounce the unleased queue entries of these submissions. Returns their number.

    The entries are leased first, so that no worker sends a message that is reported as unsent.
    Scheduled copies of messages that were sent to no recipient become drafts.
    """
    lease = environment.new_id()
    jobs = await _lease_open_entries(environment, submission_ids, lease)
    delivery_ids = [recipient.delivery_id for job in jobs for recipient in job.recipients]
    with leases.protect_leases_in_use(environment, *delivery_ids):
        for job in jobs:
            results = {recipient.delivery_id: REMOVED_RESULT for recipient in job.recipients}
            await record_results_and_report(
                environment,
                job,
                results,
                await message_body.read_beginning_or_empty(environment, job),
            )
    await held_messages.make_drafts_of_failed(environment, {job.submission_id for job in jobs})
    return len(delivery_ids)


async def _lease_open_entries(
    environment: Environment, submission_ids: Sequence[int], lease: int
) -> Sequence[DeliveryJob]:
    """Lease the open entries of these submissions that no process holds. Returns their jobs."""
    process_id = await leases.ensure_process_registered(environment)

    def lease_entries(transaction: DatabaseTransaction) -> Sequence[DeliveryJob]:
        statement = select(col(QueueEntry.id)).where(
            col(QueueEntry.submission_id).in_(submission_ids), *unleased_open_conditions()
        )
        locked = statement.order_by(col(QueueEntry.id)).with_for_update(skip_locked=True)
        delivery_ids = transaction.connection.execute(locked).scalars().all()
        deliveries = update(QueueEntry).where(
            col(QueueEntry.id).in_(delivery_ids), leases.is_registered(process_id)
        )
        transaction.connection.execute(
            deliveries.values(**leases.lease_values(process_id, lease), ready_at=None)
        )
        return recipient_leases.load_jobs_by_lease(transaction, lease)

    return await environment.run_transaction(lease_entries)
