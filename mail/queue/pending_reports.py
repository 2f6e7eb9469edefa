"""Send the success reports that a stopped process still owes.

The transaction that writes a successful delivery also marks its report as owed. The transaction
that stores the report removes the mark, so each report is sent exactly once, even if a process ends
between the two.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import tuple_, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, DsnAction, QueueLimits
from mail.envelope.dsn_parameters import NotifyCondition
from mail.queue import message_body, recipient_leases
from mail.queue.delivery_results import record_if_leased_and_store_reports
from mail.queue.dsn_requests import DELIVERED_STATES
from models.queue.tables import QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.prepared_statements import integer_parameter

log = logging.getLogger(__name__)

PAGE_SIZE = 100  # recipients in one page

_PAGE_KEY = col(QueueEntry.submission_id), col(QueueEntry.id)
_SELECT_OWED = (
    recipient_leases.SELECT_RECIPIENTS.add_columns(
        *map(col, (QueueEntry.state, QueueEntry.last_code, QueueEntry.last_response)),
        *map(col, (QueueEntry.mx, QueueEntry.tls, QueueEntry.pending_dsn_action)),
    )
    .where(
        col(QueueEntry.pending_dsn_action).is_not(None),
        tuple_(*_PAGE_KEY) > tuple_(integer_parameter("submission"), integer_parameter("last")),
    )
    .order_by(*_PAGE_KEY)
    .limit(PAGE_SIZE)
)


async def send_owed_reports_forever(environment: Environment, limits: QueueLimits) -> None:
    """Send the reports that two polls in a row find owed, since no process is making them."""
    owed_before: frozenset[int] = frozenset()
    while True:
        try:
            owed_before = await send_reports_still_owed(environment, owed_before)
        except Exception:  # the database may be available at the next poll
            log.exception("Could not read the pending delivery status notifications")
        await asyncio.sleep(limits.report_poll_interval)


async def send_reports_still_owed(
    environment: Environment, owed_before: Collection[int]
) -> frozenset[int]:
    """Send the success reports of `owed_before` that are still owed. Returns all owed ids."""
    parameters: dict[str, Any] = {"submission": 0, "last": 0}
    owed_ids = set[int]()
    while rows := await environment.database.read(_SELECT_OWED, parameters):
        owed_ids |= {row.id for row in rows}
        parameters |= {"submission": rows[-1].submission_id, "last": rows[-1].id}
        overdue_rows = [row for row in rows if row.id in owed_before]
        for job in recipient_leases.delivery_jobs_from_recipient_rows(overdue_rows, 0):
            delivery_ids = {recipient.delivery_id for recipient in job.recipients}
            try:
                await _send_reports_of_job(
                    environment, job, [row for row in overdue_rows if row.id in delivery_ids]
                )
            except Exception:  # a report that fails must not stop the others
                log.exception(
                    "Could not create a delivery status notification", extra={"queue": job.queue_id}
                )
    return frozenset(owed_ids)


async def _send_reports_of_job(
    environment: Environment, job: DeliveryJob, rows: Sequence[Any]
) -> None:
    """Send the owed success reports of one job, one DSN for each action."""
    if failed_ids := [
        row.id for row in rows if row.state not in DELIVERED_STATES
    ]:  # the sender already got a failure report
        await environment.run_transaction(
            lambda transaction: _clear_owed_marks(transaction, failed_ids)
        )
    rows = [row for row in rows if row.state in DELIVERED_STATES]
    if rows:
        message_head = await message_body.read_beginning_or_empty(environment, job)
        for action in sorted({row.pending_dsn_action for row in rows}):
            results_by_id = {
                row.id: _delivery_result_from_row(row)
                for row in rows
                if row.pending_dsn_action == action
            }
            await record_if_leased_and_store_reports(
                environment, job, {}, {NotifyCondition.SUCCESS: results_by_id}, message_head
            )


def _clear_owed_marks(transaction: DatabaseTransaction, delivery_ids: Sequence[int]) -> None:
    """Remove the marks of owed success reports."""
    statement = update(QueueEntry).where(col(QueueEntry.id).in_(delivery_ids))
    transaction.connection.execute(statement.values(pending_dsn_action=None))


def _delivery_result_from_row(row: Any) -> DeliveryResult:
    """The delivery result that is stored in a row."""
    action = DsnAction(row.pending_dsn_action)
    local_action = None if action is DsnAction.RELAYED else action
    return DeliveryResult(
        row.state, row.last_code, row.last_response, row.mx, row.tls, local_action=local_action
    )
