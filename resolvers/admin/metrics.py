"""Figures about the stored data for operators' metrics."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select, text
from sqlmodel import col

from models.certificates import Certificate
from models.messages.tables import Message
from models.queue.tables import IS_OPEN, IS_SCHEDULED, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission

MAX_COUNTED_ROWS = 10_000  # per kind, so that the queries stay cheap


@dataclass(frozen=True, slots=True)
class BacklogFigures:
    """Counts of waiting rows. Counting stops at MAX_COUNTED_ROWS; states are shares of that.

    `overdue_seconds` is the number of seconds since the first unleased attempt was due.
    """

    deliveries: dict[str, int] = field(default_factory=dict)  # recipients by state
    submissions: dict[str, int] = field(default_factory=dict)  # by state
    overdue_seconds: float = 0.0
    unindexed_messages: int = 0  # found by a scan only
    certificate_expires_in: float | None = (
        None  # seconds until the first certificate expires; None without certificates
    )
    failing_certificates: int = 0  # ACME failed to issue them


async def read_backlog_figures(environment: Environment) -> BacklogFigures:
    """Read the backlog figures with a few queries on partial indexes of waiting rows."""
    database, now = environment.database, environment.now()
    open_deliveries = (
        select(col(QueueEntry.submission_id), col(QueueEntry.state))
        .where(text(f"queue_entries.{IS_OPEN}"))  # the same condition as the partial index
        .limit(MAX_COUNTED_ROWS)
        .subquery()
    )
    delivery_states = await database.read(
        select(open_deliveries.c.state, func.count().label("many")).group_by(
            open_deliveries.c.state
        )
    )
    submission_states = await database.read(
        select(col(Submission.state), func.count().label("many"))
        .where(col(Submission.id).in_(select(open_deliveries.c.submission_id)))
        .group_by(col(Submission.state))
    )
    # it is in the future while a worker has a lease; held entries do not count
    next_attempt = select(func.min(col(QueueEntry.next_at)).label("at")).where(text(IS_SCHEDULED))
    next_slot = select(func.min(col(QueueEntry.ready_at)).label("at")).where(
        col(QueueEntry.ready_at).is_not(None)
    )
    due_rows = [*await database.read(next_attempt), *await database.read(next_slot)]
    # the same NOT condition as the partial index
    unindexed_messages = (
        select(col(Message.id))
        .where(text("NOT messages.indexed"))
        .limit(MAX_COUNTED_ROWS)
        .subquery()
    )
    unindexed = await database.read(
        select(func.count().label("many")).select_from(unindexed_messages)
    )
    first_expiry, failing = await _read_certificate_figures(environment)
    first_due_at = min((row.at for row in due_rows if row.at), default=None)
    return BacklogFigures(
        {str(row.state): row.many for row in delivery_states},
        {str(row.state): row.many for row in submission_states},
        max(0.0, (now - first_due_at).total_seconds()) if first_due_at else 0.0,
        unindexed[0].many,
        (first_expiry - now).total_seconds() if first_expiry else None,
        failing,
    )


class _CertificateFigures(NamedTuple):
    """When the first certificate expires, and how many ACME fails to issue."""

    first_expires_at: datetime | None
    failed_count: int


async def _read_certificate_figures(environment: Environment) -> _CertificateFigures:
    """Return when the first certificate expires, and how many certificates ACME fails to issue."""
    expiry_statement = select(func.min(col(Certificate.not_after)).label("at")).where(
        col(Certificate.chain).is_not(None)
    )
    failing_statement = select(func.count().label("many")).where(
        col(Certificate.acme_error).is_not(None)  # also in an outage of the ACME server
    )
    (first,), (count,) = (
        await environment.database.read(expiry_statement),
        await environment.database.read(failing_statement),
    )
    return _CertificateFigures(first.at, count.many)
