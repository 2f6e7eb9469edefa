"""Put messages into the queue, inside the caller's transaction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col

from mail.compose.message_draft import Priority
from mail.envelope.dsn_parameters import (
    DEFAULT_REPORTS,
    NOTIFY_NEVER,
    DsnRequest,
    first_message_request,
)
from mail.queue.destination_order import LAST_RANK
from mail.recipients.forward_targets import ForwardEndpoint
from mail.storage import held_copies, message_trace
from mail.storage.blobs.blob_writer import StoredMessageBlobs, upsert_blob_rows
from mail.storage.message_columns import content_and_reset_state_columns
from mail.storage.message_insert import InsertedMessage
from mail.storage.storable_message import StorableMessage
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.queue.tables import NORMAL_RANK, DeliveryState, QueueEntry
from models.runtime.environment import DatabaseTransaction
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    integer_parameter,
)
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User

# workers poll more often than this, so later messages need no wake-up
WAKE_UP_HORIZON = timedelta(minutes=1)
_INSERT_SUBMISSION = PreparedStatement(insert(Submission).inline())
_INSERT_DELIVERY = PreparedStatement(insert(QueueEntry).inline())
_INSERT_BLOB_REFERENCE = PreparedStatement(insert(SubmissionBlob).inline())
_SELECT_TENANT_AND_DOMAIN = PreparedStatement(
    select(col(User.tenant_id), col(User.domain_id)).where(
        col(User.id) == integer_parameter("user")
    )
)
HELD_STATES = (SubmissionState.SCHEDULED, SubmissionState.UNDOABLE)
RANK_BY_PRIORITY = {Priority.HIGH: 0, Priority.NORMAL: NORMAL_RANK, Priority.LOW: LAST_RANK}


@dataclass(frozen=True, slots=True)
class NewSubmission:
    """A message to put into the queue: envelope, blobs and options."""

    sender: str  # envelope sender; empty: no DSN is sent
    recipients: Sequence[str]
    size: int
    root_blob_id: int
    blob_ids: Sequence[int]  # includes the root blob
    stored_message_id: int | None  # id of the copy in a mailbox
    due_at: datetime  # time of the first attempt
    state: SubmissionState = SubmissionState.QUEUED
    send_at: datetime | None = None
    undoable_until: datetime | None = None
    sent_mailbox_id: int | None = None  # where a held copy moves when the hold ends
    endpoints: Sequence[ForwardEndpoint] = ()  # targets besides `recipients`
    copy_of: int | None = None  # submission that a BCC rule copied
    priority: Priority = Priority.NORMAL
    message_id_header: str | None = None  # value of Message-ID, for the delivery trace
    dsn_requests: Mapping[str, DsnRequest] = field(default_factory=dict)  # by recipient
    originates_here: bool = False  # it gets DKIM signatures of the author's domain
    arrival_records: Mapping[str, str] = field(default_factory=dict)  # by recipient


def build_submission_and_insert_blobs(  # noqa: PLR0913 - the envelope, and what is sent
    transaction: DatabaseTransaction,
    message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
    sender: str,
    recipients: Sequence[str],
    *,
    stored_copy: InsertedMessage | None = None,
    **options: Any,
) -> NewSubmission:
    """A submission for a message with stored bytes. It is due now unless `due_at` is given.

    `stored_copy` is the copy that the same transaction stored in a mailbox. Other options are
    fields of the submission.
    """
    if stored_copy is None:
        id_by_blob = upsert_blob_rows(transaction, stored_blobs)
        root_blob_id, needed_ids = id_by_blob[stored_blobs.layout_digest], list(id_by_blob.values())
    else:
        root_blob_id, needed_ids = stored_copy.layout_blob_id, list(stored_copy.blob_ids)
    options = {
        "stored_message_id": None,
        "due_at": transaction.environment.now(),
        "originates_here": message.is_generated,
        **options,
    }
    options["message_id_header"] = message.facts.message_id
    return NewSubmission(sender, recipients, message.size, root_blob_id, needed_ids, **options)


@dataclass(frozen=True, slots=True)
class SubmissionOwner:
    """The user that a message is sent for, or the platform with a tenant."""

    user_id: int | None
    tenant_id: int | None = None  # None: tenant and domain of the user
    origin: str | None = None
    domain_id: int | None = None  # whose administrators see it; None: the domain of the tenant


def enqueue(
    transaction: DatabaseTransaction, owner: SubmissionOwner, submission: NewSubmission
) -> int:
    """Insert a submission with its queue entries, blob references and journal entry.

    Returns the submission id. Workers are woken at commit if it is due soon.
    """
    (key,) = insert_submissions_in_one_batch(transaction, owner, [submission])
    return key


def insert_submissions_in_one_batch(
    transaction: DatabaseTransaction, owner: SubmissionOwner, submissions: Sequence[NewSubmission]
) -> list[int]:
    """Insert several submissions as `enqueue` does, in one batch. Returns their ids in order."""
    owner = _owner_with_tenant_and_domain(transaction, owner)
    now = transaction.environment.now()
    statements = list[StatementWithValues]()
    submission_ids = list[int]()
    ids_by_state: dict[SubmissionState, list[int]] = {}
    for submission in submissions:
        row = _submission_row(transaction, submission, owner)
        submission_id = row["id"]
        submission_ids.append(submission_id)
        ids_by_state.setdefault(submission.state, []).append(submission_id)
        statements.append((_INSERT_SUBMISSION, row))
        statements += [
            (_INSERT_DELIVERY, delivery)
            for delivery in _delivery_rows(transaction, submission, submission_id, owner.user_id)
        ]
        blob_ids = set(submission.blob_ids)
        statements += [
            (_INSERT_BLOB_REFERENCE, {"submission_id": submission_id, "blob_id": blob})
            for blob in blob_ids
        ]
        recipients = (*submission.recipients, *(via.recipient for via in submission.endpoints))
        statements += message_trace.submission_step_statements(
            transaction.environment, row, recipients
        )
        if submission.due_at - now < WAKE_UP_HORIZON:
            transaction.workers_to_wake.add(QUEUE)
    entries = [
        JournalEntry(EventType.SUBMISSION_CREATED, state_ids, {"state": state.value}, owner.origin)
        for state, state_ids in ids_by_state.items()
    ]
    stream = PLATFORM if owner.user_id is None else owner.user_id
    _, journal_statements = transaction.lock_stream_and_plan_entry_statements(
        stream, entries, at=now
    )
    transaction.execute_statements([*statements, *journal_statements])
    return submission_ids


def _submission_row(
    transaction: DatabaseTransaction,
    submission: NewSubmission,
    owner: SubmissionOwner,
) -> dict[str, Any]:
    """Column values of the `submissions` row."""
    dsn_request = first_message_request(submission.dsn_requests.values())
    return {
        "id": transaction.environment.new_id(),
        "user_id": owner.user_id,
        "tenant_id": owner.tenant_id,
        "domain_id": owner.domain_id,
        "queue_id": transaction.environment.random_bytes(10).hex(),
        "state": submission.state,
        "message_id": submission.stored_message_id,
        "blob_id": submission.root_blob_id,
        "size": submission.size,
        "envelope_from": submission.sender,
        "send_at": submission.send_at,
        "undoable_until": submission.undoable_until,
        "release_at": submission.due_at if submission.state in HELD_STATES else None,
        "sent_mailbox_id": submission.sent_mailbox_id,
        "copy_of": submission.copy_of,
        "envid": dsn_request.envid,
        "ret": dsn_request.ret,
        "header_id": message_trace.stored_text(submission.message_id_header),
        "originates_here": submission.originates_here,
        "created_at": transaction.environment.now(),
    }


def _owner_with_tenant_and_domain(
    transaction: DatabaseTransaction, owner: SubmissionOwner
) -> SubmissionOwner:
    """Return the owner with its tenant and domain. Those of an unknown user are None."""
    if owner.tenant_id is not None:
        domain_id = owner.tenant_id if owner.domain_id is None else owner.domain_id
        return replace(owner, domain_id=domain_id)
    if owner.user_id is None:
        return owner
    rows = transaction.fetch_rows(_SELECT_TENANT_AND_DOMAIN, user=owner.user_id)
    if not rows:
        return owner
    return replace(owner, tenant_id=rows[0].tenant_id, domain_id=rows[0].domain_id)


def _delivery_rows(
    transaction: DatabaseTransaction,
    submission: NewSubmission,
    submission_id: int,
    user_id: int | None,
) -> list[dict[str, Any]]:
    """Column values of the queue entries, in the order of the recipients."""
    now = transaction.environment.now()
    common_values = {
        "user_id": user_id,
        "submission_id": submission_id,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "next_at": submission.due_at,
        "ready_at": submission.due_at if submission.due_at <= now else None,
        "rank": RANK_BY_PRIORITY[submission.priority],
        "created_at": now,
        "expires_at": submission.due_at + transaction.environment.options.queue_lifetime,
    }
    return [
        {**common_values, **row}
        for row in _values_that_differ_by_queue_entry(transaction, submission)
    ]


def copy_to_running_legal_holds(
    transaction: DatabaseTransaction,
    owner_and_submission_ids: tuple[int, int],
    message: StorableMessage,
    submission: NewSubmission,
) -> None:
    """Store a legal hold copy of a sent message that has no copy in a mailbox.

    `owner_and_submission_ids` are the user id and the submission id.
    """
    owner_id, submission_id = owner_and_submission_ids
    values = {
        **content_and_reset_state_columns(message),
        "blob_id": submission.root_blob_id,
        "received_at": transaction.environment.now(),
        "envelope_from": submission.sender,
        "envelope_to": list(submission.recipients),
    }
    held_copies.copy_sent_message_to_legal_holds(
        transaction, owner_id, submission_id, values, submission.blob_ids
    )


def _values_that_differ_by_queue_entry(
    transaction: DatabaseTransaction, submission: NewSubmission
) -> Iterator[dict[str, Any]]:
    """Column values that differ between the queue entries of a submission."""
    for address in submission.recipients:
        delivery_id = transaction.environment.new_id()
        values = {
            "id": delivery_id,
            "recipient": address,
            "domain": address.rpartition("@")[2],
            "via": None,
            "secret": None,
        }
        if (record := submission.arrival_records.get(address)) is not None:
            values["secret"] = transaction.environment.secret_box.encrypt(
                record, secret_context(delivery_id)
            )
        yield {**values, **_dsn_values(submission, address)}
    for endpoint in submission.endpoints:
        delivery_id = transaction.environment.new_id()
        sealed_url = transaction.environment.secret_box.encrypt(
            endpoint.secret_url, secret_context(delivery_id)
        )
        values = {"id": delivery_id, "recipient": endpoint.recipient, "domain": endpoint.public_url}
        yield {
            **values,
            "via": endpoint.public_url,
            "secret": sealed_url,
            **_dsn_values(submission, endpoint.recipient),
        }


def _dsn_values(submission: NewSubmission, address: str) -> dict[str, str | None]:
    """The `notify` and `orcpt` columns. Copies and messages without a sender get no reports."""
    if not submission.sender or submission.copy_of is not None:
        return {"notify": NOTIFY_NEVER, "orcpt": None}
    dsn_request = submission.dsn_requests.get(address, DEFAULT_REPORTS)
    return {"notify": dsn_request.notify_value, "orcpt": dsn_request.orcpt}


def secret_context(delivery_id: int) -> str:
    """The secret box context that `QueueEntry.secret` is encrypted for."""
    return f"via:{delivery_id}"
