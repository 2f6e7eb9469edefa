"""Write the results of delivery attempts, and report them to the sender."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import bindparam, case, func, null, select, update
from sqlmodel import col

from mail.addresses import srs
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, DsnAction, JobRecipient
from mail.envelope.dsn_parameters import NotifyCondition
from mail.logs.message_entries import DeliveryAttempt, record_delivery_attempt
from mail.queue import dsn_requests
from mail.queue.destination_order import LAST_RANK
from mail.queue.dsn_requests import DELIVERED_STATES, FAILED_STATES
from mail.queue.dsn_writer import report_from_results
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_insert import MessagePlacement, insert_message_and_take_quota
from mail.storage.quota import InsertKind
from mail.storage.received_messages import (
    parse_storable_message,
    store_all_blobs_and_run_transaction,
)
from mail.storage.storable_message import StorableMessage
from models.addresses.tables import Address
from models.errors import OverQuota
from models.events.journal import PLATFORM, JournalEntry
from models.mailboxes.tables import Mailbox, SpecialUse
from models.observability import metrics
from models.queue.tables import NORMAL_RANK, DeliveryState, QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import Options
from models.store.columns import core_table
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.submission.tables import Submission, SubmissionState, submission_event_type

log = logging.getLogger(__name__)

DEFAULT_BACKOFF = Options().queue_retry_delays
JITTER = 0.2  # of the retry delay, up or down
PAUSE_SHARE_OF_AGE = (
    0.25  # of the age of a message; a longer delay comes only from the pause of its destination
)
SECOND = timedelta(seconds=1)

RESULTS_COUNTER = metrics.counter(
    "merganser_queue_results", "Results of delivery attempts, for each recipient.", "state"
)
SECURITY_STATUS_PREFIX = "4.7."  # security status codes (RFC 3463, section 3.8)
OPEN_STATES = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})


async def record_results_and_report(
    environment: Environment,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    raw_message: bytes,
) -> None:
    """Write the results of the recipients of a job, and send the DSNs that they require.

    Deliveries are written first, in their own transaction, so that a crash can't repeat them. Their
    success reports follow in a second transaction; until then they are marked as owed
    (mail/queue/pending_reports.py). Other results are written together with their reports. Failed
    copies of BCC rules are only logged.
    """
    now = environment.now()
    for result in results_by_delivery_id.values():
        if result.paused_for is None:
            RESULTS_COUNTER.add(result.state)
    delivered = {
        key: result
        for key, result in results_by_delivery_id.items()
        if result.state in DELIVERED_STATES
    }
    success_reports = dsn_requests.results_to_report(environment, job, delivered, now)
    if delivered:
        reported_ids = success_reports.get(NotifyCondition.SUCCESS, ())
        is_lease_held = await environment.run_transaction(
            lambda transaction: _write_results_if_leased(
                transaction, job, delivered, now, owed_report_ids=reported_ids
            ),
            job.journal_stream,
        )
        if success_reports:
            environment.reach_fault_point("owed")
            success_reports = success_reports if is_lease_held else {}
    undelivered = {
        recipient.delivery_id: _expire_overdue(
            results_by_delivery_id[recipient.delivery_id], recipient, now
        )
        for recipient in job.recipients
        if recipient.delivery_id in results_by_delivery_id
        and recipient.delivery_id not in delivered
    }
    if job.is_copy and any(result.state in FAILED_STATES for result in undelivered.values()):
        log.warning("BCC copy not delivered", extra={"queue": job.queue_id})
    reports = dsn_requests.results_to_report(environment, job, undelivered, now) | success_reports
    if reports:
        await record_if_leased_and_store_reports(
            environment, job, undelivered, reports, raw_message
        )
    elif undelivered:
        await environment.run_transaction(
            lambda transaction: _write_results_if_leased(transaction, job, undelivered, now),
            job.journal_stream,
        )
    _count_usage(environment, job, delivered | undelivered, len(raw_message))
    _record_attempts_in_log(environment, job, delivered | undelivered)


def _count_usage(
    environment: Environment,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    message_size: int,
) -> None:
    """Count the recipients that got the message, or whose delivery has failed, for its sender."""
    for result in results_by_delivery_id.values():
        if result.state in DELIVERED_STATES:
            environment.usage.count_sent_message(job.user_id, message_size)
        elif result.state in FAILED_STATES:
            environment.usage.count_bounced_message(job.user_id)


def _record_attempts_in_log(
    environment: Environment, job: DeliveryJob, results_by_delivery_id: Mapping[int, DeliveryResult]
) -> None:
    """Write each attempt to the log store."""
    for recipient in job.recipients:
        result = results_by_delivery_id.get(recipient.delivery_id)
        if result is not None and result.paused_for is None:
            attempt = DeliveryAttempt(
                job.queue_id,
                job.message_id_header,
                job.user_id,
                job.sender,
                recipient.address,
                result.state,
                f"{result.reply_code} {result.reply_text}",
                result.mx,
                result.tls_description,
            )
            record_delivery_attempt(environment, attempt)


def _expire_overdue(
    result: DeliveryResult, recipient: JobRecipient, now: datetime
) -> DeliveryResult:
    """Turn a temporary failure into EXPIRED if the recipient's time in the queue is over."""
    if result.state is not DeliveryState.DEFERRED or now < recipient.expires_at:
        return result
    reply_code, reply_text = result.reply_code, result.reply_text
    if reply_text.startswith(SECURITY_STATUS_PREFIX):  # no connection met the TLS requirement
        reply_code, reply_text = 550, f"5{reply_text[1:]}"
    return replace(
        result,
        state=DeliveryState.EXPIRED,
        reply_code=reply_code,
        reply_text=reply_text,
        is_uncertain=False,
    )


async def record_if_leased_and_store_reports(
    environment: Environment,
    job: DeliveryJob,
    unrecorded_results: Mapping[int, DeliveryResult],
    reports: Mapping[NotifyCondition, Mapping[int, DeliveryResult]],
    raw_message: bytes,
) -> None:
    """Write results and store the DSNs for the sender, in one transaction.

    `reports` maps each NOTIFY condition to the results to report. A user gets the DSN in INBOX. For
    other senders, and for a user whose mailbox is full, it is queued.
    """
    now, delayed_ids = environment.now(), reports.get(NotifyCondition.DELAY, ())
    report_messages = {
        on: await parse_storable_message(
            report_from_results(environment, job, submission_row, raw_message, on)
        )
        for on, submission_row in reports.items()
    }

    def write_results_and_reports(
        transaction: DatabaseTransaction, blobs: Sequence[StoredMessageBlobs], *, in_queue: bool
    ) -> None:
        is_lease_held = not unrecorded_results or _write_results_if_leased(
            transaction, job, unrecorded_results, now
        )
        for (on, message), report_blobs in zip(report_messages.items(), blobs, strict=True):
            if not (
                _clear_owed_successes_if_all_owed(transaction, reports[on])
                if on is NotifyCondition.SUCCESS
                else is_lease_held
            ):
                continue
            if in_queue or job.user_id is None:
                _queue_report(transaction, job, message, report_blobs)
            else:
                _store_report_in_inbox(transaction, job, (message, report_blobs), job.user_id)
        if is_lease_held and delayed_ids:
            delayed_entries = update(QueueEntry).where(col(QueueEntry.id).in_(delayed_ids))
            transaction.connection.execute(delayed_entries.values(delay_reported_at=now))

    async def store_reports(*, in_queue: bool, streams: Collection[int]) -> None:
        await store_all_blobs_and_run_transaction(
            environment,
            job.tenant_id,
            list(report_messages.values()),
            partial(write_results_and_reports, in_queue=in_queue),
            *streams,
        )

    try:
        await store_reports(in_queue=False, streams={job.journal_stream})
    except OverQuota:  # the queue delivers the DSN when there is room, like other mail
        await store_reports(in_queue=True, streams={PLATFORM, job.journal_stream})


def _clear_owed_successes_if_all_owed(
    transaction: DatabaseTransaction, delivery_ids: Collection[int]
) -> bool:
    """Mark the success reports of these deliveries as sent.

    Returns False, and changes nothing, if another process has sent one of them.
    """
    still_owed = select(col(QueueEntry.id)).where(
        col(QueueEntry.id).in_(delivery_ids), col(QueueEntry.pending_dsn_action).is_not(None)
    )
    if len(transaction.connection.execute(still_owed.with_for_update()).all()) < len(delivery_ids):
        return False
    statement = update(QueueEntry).where(col(QueueEntry.id).in_(delivery_ids))
    transaction.connection.execute(statement.values(pending_dsn_action=None))
    return True


def _queue_report(
    transaction: DatabaseTransaction,
    job: DeliveryJob,
    report_message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
) -> None:
    """Queue a DSN with an empty envelope sender for the sender of the job.

    If that is an SRS address of this server, the DSN goes to the original sender. A user gets it at
    the main address, since the sender address of the job can be one without mailbox.
    """
    recipient = srs.original_sender_or_same(transaction.environment, job.sender)
    if job.user_id is not None:
        is_main_address = col(Address.user_id) == job.user_id, col(Address.main)
        statement = select(col(Address.display_address)).where(*is_main_address)
        recipient = transaction.connection.execute(statement).scalar() or recipient
    enqueue(
        transaction,
        SubmissionOwner(None, job.tenant_id, domain_id=job.domain_id),
        build_submission_and_insert_blobs(
            transaction, report_message, stored_blobs, "", [recipient], originates_here=True
        ),
    )


def _store_report_in_inbox(
    transaction: DatabaseTransaction,
    job: DeliveryJob,
    message_and_blobs: tuple[StorableMessage, StoredMessageBlobs],
    user_id: int,
) -> None:
    """Store a DSN in the INBOX of a user. Raises OverQuota; logs a warning without INBOX."""
    statement = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == SpecialUse.INBOX
    )
    mailbox_id = transaction.connection.execute(statement).scalar()
    if mailbox_id is None:
        log.warning(
            "The account has no INBOX; delivery status notification not stored",
            extra={"user": user_id, "queue": job.queue_id},
        )
        return
    destination = MessagePlacement(
        user_id,
        mailbox_id,
        transaction.environment.now(),
        envelope_from="",
        envelope_to=[job.sender],
    )
    insert_message_and_take_quota(
        transaction, *message_and_blobs, destination, kind=InsertKind.GENERATED
    )


def _write_results_if_leased(
    transaction: DatabaseTransaction,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    finished_at: datetime,
    *,
    owed_report_ids: Collection[int] = (),
) -> bool:
    """Write the results of recipients that this job still leases. True if it leases all.

    Deliveries in `owed_report_ids` are marked as owing a success report. The retry delay counts
    from the start of the transaction, not from `finished_at`, since the clock can be changed
    between them.
    """
    started = transaction.environment.now()
    jitter_fraction = int.from_bytes(transaction.environment.random_bytes(4)) / 2**32
    backoff = transaction.environment.options.queue_retry_delays
    age = finished_at - (job.first_due_at or job.created_at)
    written_count = 0
    for recipient in job.recipients:
        if result := results_by_delivery_id.get(recipient.delivery_id):
            if result.paused_for is None:
                retry_at = started + retry_delay(recipient.attempts, jitter_fraction, backoff)
                values = _result_values(result, recipient, finished_at, retry_at)
            else:
                retry_at = started + delay_while_paused(result.paused_for, age, backoff)
                values = _unattempted_result_values(result, recipient, finished_at, retry_at)
            if result.state is DeliveryState.DEFERRED:
                values["next_at"] = dsn_requests.clamp_attempt_to_report_or_expiry(
                    transaction.environment, job, recipient, values["next_at"]
                )
            if recipient.delivery_id in owed_report_ids:
                values["pending_dsn_action"] = result.local_action or DsnAction.RELAYED
            parameters = {f"to_{name}": value for name, value in values.items()}
            statement = _result_update_statement(tuple(sorted(values)))
            written_count += len(
                transaction.fetch_rows(
                    statement, delivery=recipient.delivery_id, held=job.lease, **parameters
                )
            )
    if written_count < len(results_by_delivery_id):
        lost_count = len(results_by_delivery_id) - written_count
        log.warning("Lease lost", extra={"queue": job.queue_id, "recipients": lost_count})
    if written_count:
        refresh_and_journal_submission_state(
            transaction, job.journal_stream, job.submission_id, changed_at=finished_at
        )
    return written_count == len(results_by_delivery_id)


@lru_cache
def _result_update_statement(column_names: tuple[str, ...]) -> PreparedStatement:
    """Prepared statement that sets these columns of a delivery if its lease is held."""
    table_columns = core_table(QueueEntry).c
    leased_delivery = update(QueueEntry).where(
        col(QueueEntry.id) == integer_parameter("delivery"),
        col(QueueEntry.lease) == integer_parameter("held"),
    )
    values: dict[str, Any] = {
        name: bindparam(f"to_{name}", type_=table_columns[name].type) for name in column_names
    }
    values["flushed_at"] = null()
    # after its first attempt it yields to new messages
    values["rank"] = case((col(QueueEntry.rank) < NORMAL_RANK, NORMAL_RANK), else_=LAST_RANK)
    return PreparedStatement(leased_delivery.values(values).returning(col(QueueEntry.id)))


def _result_values(
    result: DeliveryResult, recipient: JobRecipient, finished_at: datetime, retry_at: datetime
) -> dict[str, Any]:
    """Column values of a delivery for its result."""
    is_deferred = result.state is DeliveryState.DEFERRED
    values: dict[str, Any] = {
        "state": result.state,
        "lease": None,
        "holder": None,
        "next_at": min(retry_at, recipient.expires_at) if is_deferred else None,
        "ready_at": None,
        **({} if is_deferred else {"held_at": None}),
        "last_code": result.reply_code,
        "last_response": result.reply_text,
        "mx": result.mx,
        "tls": result.tls_description,
        "delivered_at": finished_at if result.state in DELIVERED_STATES else None,
    }
    if not (result.is_uncertain or result.state in DELIVERED_STATES):
        values["final_dot_at"] = None  # the server refused the message, so it does not have it
    return values


def _unattempted_result_values(
    result: DeliveryResult, recipient: JobRecipient, finished_at: datetime, retry_at: datetime
) -> dict[str, Any]:
    """Column values for a result without an attempt, since the destination was paused.

    The attempt is not counted, and the last reply is kept.
    """
    values = {
        **_result_values(result, recipient, finished_at, retry_at),
        "attempts": recipient.attempts - 1,
    }
    if result.state is DeliveryState.DEFERRED or recipient.attempts > 1:
        for name in ("last_code", "last_response", "mx", "tls"):
            del values[name]
    return values


def delay_while_paused(
    pause: timedelta, age: timedelta, backoff: Sequence[timedelta] = DEFAULT_BACKOFF
) -> timedelta:
    """Delay before the next attempt if the destination is paused.

    It is the remaining pause, or a share of the message's age if that is longer, so that old
    messages are not looked at again and again.
    """
    return max(pause, min(age * PAUSE_SHARE_OF_AGE, backoff[-1]), SECOND)


def retry_delay(
    attempts: int, jitter_fraction: float, backoff: Sequence[timedelta] = DEFAULT_BACKOFF
) -> timedelta:
    """Delay before the next attempt, after this number of attempts.

    `jitter_fraction` is random, from 0 up to 1.
    """
    base_delay = backoff[min(attempts, len(backoff)) - 1]
    return base_delay * (1 - JITTER + 2 * JITTER * jitter_fraction)


_BY_ID = col(Submission.id) == integer_parameter("submission")
_SELECT_DELIVERY_STATES = PreparedStatement(
    select(
        col(QueueEntry.state),
        func.max(col(QueueEntry.attempts)).label("attempts"),
        col(Submission.state).label("now"),
    )
    .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
    .where(col(QueueEntry.submission_id) == integer_parameter("submission"))
    .group_by(col(QueueEntry.state), col(Submission.state))
)
_UPDATE_STATE = PreparedStatement(
    update(Submission)
    .where(_BY_ID)
    .values(state=bindparam("to_state", type_=core_table(Submission).c.state.type))
)


def refresh_and_journal_submission_state(
    transaction: DatabaseTransaction, stream: int, submission_id: int, *, changed_at: datetime
) -> SubmissionState:
    """Set the state of a submission from its deliveries, and journal the change."""
    rows = transaction.fetch_rows(_SELECT_DELIVERY_STATES, submission=submission_id)
    was_attempted = any(row.attempts for row in rows)
    state = state_from_deliveries(
        [row.state for row in rows], rows[0].now, was_attempted=was_attempted
    )
    entry = JournalEntry(submission_event_type(state), [submission_id], {"state": state.value})
    _, journal_statements = transaction.lock_stream_and_plan_entry_statements(
        stream, [entry], at=changed_at
    )
    transaction.execute_statements(
        [(_UPDATE_STATE, {"submission": submission_id, "to_state": state}), *journal_statements]
    )
    return state


def state_from_deliveries(
    delivery_states: Sequence[DeliveryState], current_state: SubmissionState, *, was_attempted: bool
) -> SubmissionState:
    """State of a submission, from the states of its deliveries.

    It keeps its current state until the first attempt.
    """
    distinct_states = set(delivery_states)
    if distinct_states & OPEN_STATES:
        is_sending = was_attempted or DeliveryState.DEFERRED in distinct_states
        return SubmissionState.SENDING if is_sending else current_state
    if distinct_states <= {DeliveryState.CANCELLED}:
        return SubmissionState.CANCELLED
    if distinct_states <= DELIVERED_STATES:
        return SubmissionState.SENT
    return SubmissionState.PARTIAL if distinct_states & DELIVERED_STATES else SubmissionState.FAILED
