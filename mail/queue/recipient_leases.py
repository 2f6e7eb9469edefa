"""Leases of queue entries: which process attempts which recipient."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, select, update
from sqlalchemy.sql.dml import UpdateBase
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient, QueueLimits
from mail.envelope.dsn_parameters import DsnRequest, conditions_from_notify
from mail.queue import held_messages
from mail.queue.destination_order import (
    ChosenRecipients,
    ClaimCapacity,
    LineCursor,
    line_up_due_and_choose_recipients,
    next_due_at_outside_lines,
)
from models.observability import metrics
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.submission.tables import Submission
from models.users.tables import User

SECONDS_AFTER_ERROR = 120.0  # until a recipient is retried whose result could not be written
OPEN_STATES = (DeliveryState.PENDING, DeliveryState.DEFERRED)

UNCERTAIN_COUNTER = metrics.counter(
    "merganser_queue_possible_duplicates",
    "Recipients tried again although they may have the message: no reply to its end was stored.",
)


@dataclass(frozen=True, slots=True)
class ClaimedJobs:
    """The jobs that a process has leased, and when more are due."""

    jobs: Sequence[DeliveryJob]
    next_at: datetime | None
    recipient_count: int
    uncertain_count: int  # recipients that may already have the message
    has_more: bool = False  # more can be taken at once
    has_more_blocked: bool = False  # more are due, but exceed the capacity


@dataclass(frozen=True, slots=True)
class _LeasedRecipients:
    """The recipients that one transaction has leased."""

    chosen: ChosenRecipients
    rows: Sequence[Any]  # as of SELECT_RECIPIENTS
    next_at: datetime | None  # when more are due; None also if more can be taken at once


async def release_held_and_claim_due_jobs(
    environment: Environment,
    limits: QueueLimits,
    capacity: ClaimCapacity | None = None,
    cursor: LineCursor | None = None,
) -> ClaimedJobs:
    """Lease recipients that are due, in the order of mail/queue/destination_order.py.

    By default it leases as many as `limits` allows. A lease ends when its result is written, or
    when the heartbeat of this process stops.
    """
    await held_messages.release_or_cancel_due_submission_batch(environment)
    lease, process_id = environment.new_id(), await leases.ensure_process_registered(environment)
    capacity = capacity or ClaimCapacity(
        limits.claim_size, limits.max_destinations, limits.max_destinations
    )

    def lease_recipients(transaction: DatabaseTransaction) -> _LeasedRecipients:
        recipients = line_up_due_and_choose_recipients(
            transaction, capacity, cursor or LineCursor()
        )
        rows: Sequence[Any] = []
        if recipients.delivery_ids:
            parameters = {"ids": recipients.delivery_ids, "new_lease": lease, "process": process_id}
            transaction.execute_statements(
                [
                    (
                        _lease_deliveries_by_id_statement(transaction.connection.dialect.name),
                        parameters,
                    )
                ]
            )
            rows = _load_rows_by_lease(transaction, lease)
        next_at = None if recipients.has_more else next_due_at_outside_lines(transaction)
        return _LeasedRecipients(recipients, rows, next_at)

    leased = await environment.run_transaction(lease_recipients)
    rows = leased.rows
    uncertain_count = sum(row.final_dot_at is not None for row in rows)
    if uncertain_count:
        UNCERTAIN_COUNTER.add(amount=uncertain_count)
    return ClaimedJobs(
        delivery_jobs_from_recipient_rows(rows, lease),
        leased.next_at,
        len(rows),
        uncertain_count,
        leased.chosen.has_more,
        leased.chosen.has_more_blocked,
    )


@prepare_cached
def _lease_deliveries_by_id_statement(dialect: str) -> UpdateBase:
    """Prepared statement that leases deliveries to a registered process."""
    return (
        update(QueueEntry)
        .where(
            is_in_parameter(dialect, col(QueueEntry.id), "ids"),
            leases.is_registered(integer_parameter("process")),
        )
        .values(
            lease=integer_parameter("new_lease"),
            holder=integer_parameter("process"),
            ready_at=None,
            attempts=QueueEntry.attempts + 1,
        )
    )


SELECT_RECIPIENTS = (  # the columns that jobs are made of
    select(
        col(QueueEntry.id),
        col(QueueEntry.recipient),
        col(QueueEntry.domain),
        col(QueueEntry.attempts),
        col(QueueEntry.expires_at),
        col(QueueEntry.final_dot_at),
        col(QueueEntry.via),
        col(QueueEntry.secret),
        col(QueueEntry.rank),
        col(QueueEntry.notify),
        col(QueueEntry.orcpt),
        col(QueueEntry.delay_reported_at),
        col(QueueEntry.flushed_at),
        col(Submission.id).label("submission_id"),
        col(Submission.queue_id),
        col(Submission.user_id),
        col(Submission.blob_id),
        col(Submission.envelope_from),
        col(Submission.created_at),
        col(Submission.tenant_id),
        col(Submission.domain_id),
        col(Submission.copy_of),
        col(User.require_outbound_tls),
        col(Submission.envid),
        col(Submission.ret),
        col(Submission.header_id),
        col(Submission.send_at),
        col(Submission.undoable_until),
        col(Submission.originates_here),
    )
    .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
    .outerjoin(User, col(User.id) == col(Submission.user_id))
)
_SELECT_LEASED = PreparedStatement(
    SELECT_RECIPIENTS.where(col(QueueEntry.lease) == integer_parameter("lease")).order_by(
        col(QueueEntry.id)
    )
)


async def load_leased_delivery_ids(environment: Environment) -> dict[int, set[int]]:
    """Load the ids of all leased deliveries, by lease."""
    statement = select(col(QueueEntry.lease), col(QueueEntry.id)).where(
        col(QueueEntry.lease).is_not(None)
    )
    ids_by_lease: defaultdict[int, set[int]] = defaultdict(set)
    for row in await environment.database.read(statement):
        ids_by_lease[row.lease or 0].add(row.id)
    return ids_by_lease


def load_jobs_by_lease(transaction: DatabaseTransaction, lease: int) -> list[DeliveryJob]:
    """Load the jobs with all recipients that are held under a lease."""
    return delivery_jobs_from_recipient_rows(_load_rows_by_lease(transaction, lease), lease)


def _load_rows_by_lease(transaction: DatabaseTransaction, lease: int) -> Sequence[ColumnRow]:
    return transaction.fetch_rows(_SELECT_LEASED, lease=lease)


def delivery_jobs_from_recipient_rows(rows: Sequence[Any], lease_id: int) -> list[DeliveryJob]:
    """Make one job for the rows of each submission and domain."""
    rows_by_destination: defaultdict[tuple[int, str], list[ColumnRow]] = defaultdict(list)
    for row in rows:
        rows_by_destination[row.submission_id, row.domain].append(row)
    return [
        DeliveryJob(
            lease=lease_id,
            submission_id=submission_id,
            queue_id=group[0].queue_id,
            user_id=group[0].user_id,
            tenant_id=group[0].tenant_id,
            blob_id=group[0].blob_id,
            sender=group[0].envelope_from,
            domain=domain,
            created_at=group[0].created_at,
            recipients=[_job_recipient(row) for row in group],
            endpoint_url=group[0].via,
            is_copy=group[0].copy_of is not None,
            rank=group[0].rank,
            requires_tls=bool(group[0].require_outbound_tls),
            message_id_header=group[0].header_id,
            first_due_at=_first_due_at(group[0]),
            flushed_at=max((row.flushed_at for row in group if row.flushed_at), default=None),
            originates_here=group[0].originates_here,
            domain_id=group[0].domain_id,
        )
        for (submission_id, domain), group in rows_by_destination.items()
    ]


def _job_recipient(recipient_row: ColumnRow) -> JobRecipient:
    """The job recipient of a row."""
    dsn_request = DsnRequest(
        conditions_from_notify(recipient_row.notify),
        recipient_row.orcpt,
        recipient_row.envid,
        recipient_row.ret,
    )
    is_delay_reported = recipient_row.delay_reported_at is not None
    return JobRecipient(
        recipient_row.id,
        recipient_row.recipient,
        recipient_row.attempts,
        recipient_row.expires_at,
        recipient_row.secret,
        dsn_request,
        is_delay_reported,
    )


def _first_due_at(recipient_row: ColumnRow) -> datetime:
    """Return the time of the first attempt.

    It is the latest of the creation, the scheduled time and the end of the undo period.
    """
    latest: datetime = max(
        at
        for at in (recipient_row.created_at, recipient_row.send_at, recipient_row.undoable_until)
        if at is not None
    )
    return latest


def restore_leases(transaction: DatabaseTransaction, jobs: Sequence[DeliveryJob]) -> None:
    """Lease the recipients of these jobs again, after this process lost its registration.

    Recipients that another process has attempted or leased since then are left out.
    """
    for job in jobs:
        for recipient in job.recipients:
            statement = update(QueueEntry).where(
                col(QueueEntry.id) == recipient.delivery_id,
                col(QueueEntry.lease).is_(None),
                col(QueueEntry.attempts) == recipient.attempts,
                col(QueueEntry.state).in_(OPEN_STATES),
            )
            values = {
                "lease": job.lease,
                "holder": transaction.environment.process.id,
                "ready_at": None,
            }
            transaction.connection.execute(statement.values(values))


def schedule_release_after_error(environment: Environment, job: DeliveryJob) -> None:
    """End the leases of a job that failed here. Its recipients are retried after a pause."""
    ids = [recipient.delivery_id for recipient in job.recipients]
    conditions = col(QueueEntry.lease) == job.lease, col(QueueEntry.id).in_(ids)
    leases.end_lease_at_later_heartbeat(
        environment, QueueEntry, *conditions, delay_seconds=SECONDS_AFTER_ERROR
    )


async def release_unattempted(
    environment: Environment, jobs: Sequence[DeliveryJob], *, delays: Sequence[float] | None = None
) -> None:
    """End the leases of jobs that were not attempted. The attempt is not counted.

    They are due now, or after the seconds in `delays`, one value for each job.
    """
    now = environment.now()
    delay_by_job = delays or [0.0] * len(jobs)

    def release(transaction: DatabaseTransaction) -> None:
        for job, delay in zip(jobs, delay_by_job, strict=True):
            leased_entries = update(QueueEntry).where(
                col(QueueEntry.lease) == job.lease,
                col(QueueEntry.id).in_([recipient.delivery_id for recipient in job.recipients]),
            )
            transaction.connection.execute(
                leased_entries.values(
                    lease=None,
                    holder=None,
                    next_at=now + timedelta(seconds=delay),
                    ready_at=None if delay else case((col(QueueEntry.held_at).is_(None), now)),
                    final_dot_at=None,
                    attempts=QueueEntry.attempts - 1,
                )
            )

    await environment.run_transaction(release)


async def mark_final_dot_if_leased(
    environment: Environment, job: DeliveryJob, delivery_ids: Sequence[int]
) -> bool:
    """Record that the final dot of DATA is about to be sent. False if a lease was lost.

    After a crash, the mark shows that the other server may have the message.
    """
    now = environment.now()

    def mark_deliveries(transaction: DatabaseTransaction) -> bool:
        marked_rows = [
            transaction.fetch_rows(_MARK_FINAL_DOT, delivery=delivery_id, held=job.lease, now=now)
            for delivery_id in delivery_ids
        ]
        return all(marked_rows)

    return await environment.run_transaction(mark_deliveries)


_NOW = bindparam("now", type_=UtcDateTime())
_MARK_FINAL_DOT = PreparedStatement(
    update(QueueEntry)
    .where(
        col(QueueEntry.id) == integer_parameter("delivery"),
        col(QueueEntry.lease) == integer_parameter("held"),
    )
    .values(final_dot_at=_NOW)
    .returning(col(QueueEntry.id))
)
