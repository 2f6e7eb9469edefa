"""Hold suspicious messages in the quarantine of their recipient, who releases or deletes them.

Quarantined messages don't count against the quota. Each account has a limit of messages and bytes;
the oldest are deleted beyond it, and all expire after a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import and_, bindparam, delete, exists, insert, or_, select, update
from sqlmodel import col

from mail.delivery import success_dsn
from mail.envelope.dsn_parameters import NotifyCondition, record_unless_default_request
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.limits import user_limits
from mail.limits.user_limits import UserLimitExceeded
from mail.spam.scan_result import SpamScanSymbol
from mail.spam.verdict import SpamVerdict
from mail.storage import (
    held_copies,
    message_columns,
    message_insert,
    openpgp_encryption,
    received_messages,
)
from mail.storage.blobs.blob_writer import StoredMessageBlobs, upsert_blob_rows
from mail.storage.message_trace import new_queue_id
from mail.storage.quota import ADD_TO_RECEIVED, HOUR, IS_BELOW_RECEIVED_LIMIT, RECEIVED_COLUMNS
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.admin.tasks import Task, TaskKind
from models.errors import LimitReached, NotFound
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW, JournalEntry
from models.events.wakeups import TASKS
from models.messages.tables import DeliveryReceipt
from models.observability import metrics
from models.runtime.environment import DatabaseTransaction, Environment
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import Frequency, User

MAX_SYMBOLS = 200  # stored per message
MAX_NAME, MAX_DESCRIPTION = 128, 512  # characters
MAX_SCORE = 1e9
FETCHED_FOR = "fetched_for"  # key in `QuarantineItem.dsn_request`: a connector fetched the message
PAGE_SIZE = 500  # accounts per page
NOTIFICATION_INTERVALS = {  # between two notifications
    Frequency.HOURLY: timedelta(hours=1),
    Frequency.DAILY: timedelta(days=1),
    Frequency.WEEKLY: timedelta(days=7),
}
QUARANTINED = metrics.counter(
    "merganser_quarantined_messages", "Quarantined messages: spam, virus.", "reason"
)


@dataclass(frozen=True, slots=True)
class QuarantineReason:
    """The reason to quarantine a message. `virus` is the name of the virus found."""

    score: float
    symbols: Sequence[SpamScanSymbol] = ()
    virus: str | None = None


_SELECT_RECEIPT = select(col(DeliveryReceipt.message_id)).where(
    col(DeliveryReceipt.digest) == bindparam("known"), col(DeliveryReceipt.at) > bindparam("since")
)
_COUNT_RECEIVED = PreparedStatement(
    update(User)
    .where(
        col(User.id) == integer_parameter("user"),
        col(User.deleted_at).is_(None),
        IS_BELOW_RECEIVED_LIMIT,
    )
    .values(**ADD_TO_RECEIVED)
    .returning(*RECEIVED_COLUMNS)
)


def is_small_enough(environment: Environment, message: StorableMessage) -> bool:
    """Return True if a message is small enough for the quarantine."""
    return message.size <= environment.options.quarantine_max_message_size


def quarantine_reason(
    environment: Environment, message: StorableMessage, verdict: SpamVerdict
) -> QuarantineReason | None:
    """Return why a message with this verdict is quarantined, None if it is not.

    Spam that is too large goes to Junk; a virus that is too large is refused.
    """
    options, scan = environment.options, message.scan
    min_score = options.spam_quarantine_score
    is_wanted = bool(min_score) and verdict.is_spam and verdict.score >= min_score
    if scan is not None and scan.virus_name and options.virus_action != "tag":
        is_wanted = options.virus_action == "quarantine"
    if not is_wanted or not is_small_enough(environment, message):
        return None
    if scan is None or scan.score is None:
        return QuarantineReason(float(verdict.score), virus=scan.virus_name if scan else None)
    return QuarantineReason(scan.score, scan.symbols, scan.virus_name)


async def quarantine_message(
    environment: Environment,
    incoming: "IncomingMessage",
    recipient: LocalRecipient,
    reason: QuarantineReason,
) -> None:
    """Quarantine a message for one recipient. On return it is durable.

    A repeated delivery is recognized by its receipt. The message is encrypted if the mailbox
    requires it. Raises LimitReached if it is too large, NotFound if the account does not exist,
    ServiceUnavailable if it can't be encrypted, UserLimitExceeded at the hourly limit.
    """
    message, most = incoming.message, environment.options.quarantine_max_message_size
    if not is_small_enough(environment, message):
        raise LimitReached(
            "The message is too large for the quarantine.", limit=most, used=message.size
        )
    if recipient.encryption_key is None:
        await _insert_item_unless_received(environment, message, (incoming, recipient), reason)
    else:
        async with incoming.encryption_lock:
            encrypted_message = await openpgp_encryption.encrypt_unless_encrypted(
                environment,
                incoming.raw_message,
                message,
                (recipient.user_id, recipient.encryption_key),
            )
            await _insert_item_unless_received(
                environment, encrypted_message, (incoming, recipient), reason
            )


async def _insert_item_unless_received(
    environment: Environment,
    message: StorableMessage,
    incoming_and_recipient: tuple["IncomingMessage", LocalRecipient],
    reason: QuarantineReason,
) -> None:
    """Store the message and insert its quarantine item, unless its receipt is known."""
    mail, recipient = incoming_and_recipient
    receipt_digest = received_messages.receipt_digest(message, recipient, mail.envelope_sender)
    since = environment.now() - environment.options.duplicate_delivery_retention

    def insert_in_transaction(
        transaction: DatabaseTransaction, stored_blobs: StoredMessageBlobs
    ) -> bool:
        if transaction.connection.execute(
            _SELECT_RECEIPT, {"known": receipt_digest, "since": since}
        ).first():
            return False
        _count_against_received_limit(transaction, recipient.user_id)
        key = transaction.environment.new_id()
        item_values = {
            **_message_columns(message),
            **_reason_columns(reason),
            "receipt": receipt_digest,
        }
        row = {"id": key, **_envelope_columns(transaction, mail, recipient), **item_values}
        blobs = upsert_blob_rows(transaction, stored_blobs)
        row |= {"blob_id": blobs[stored_blobs.layout_digest]}
        _insert_item_receipt_and_entry(transaction, row, list(blobs.values()))
        _copy_for_legal_holds(transaction, message, row, list(blobs.values()))
        _delete_oldest_over_limit(transaction, recipient.user_id, key)
        return True

    try:
        quarantined = await received_messages.store_blobs_and_run_transaction(
            environment, recipient.tenant_id, message, insert_in_transaction, recipient.user_id
        )
    except UserLimitExceeded as refusal:
        await user_limits.report_refusal_once_per_period(
            environment, recipient.user_id, refusal.limit
        )
        raise
    if quarantined:
        QUARANTINED.add("virus" if reason.virus else "spam")


def _count_against_received_limit(transaction: DatabaseTransaction, user_id: int) -> None:
    """Count the message against the hourly limit of received messages.

    Without it a flood of quarantined messages would have no limit. Raises UserLimitExceeded if the
    account has reached its limit, NotFound if it does not exist.
    """
    now = transaction.environment.now()
    hourly = transaction.environment.options.limits_received_per_hour
    parameters = {"many": 1, "now": now, "until": now + HOUR, "hourly": hourly}
    counted = transaction.fetch_rows(_COUNT_RECEIVED, user=user_id, **parameters)
    if not counted:
        full = user_limits.received_limit_error(transaction, user_id)
        raise full or NotFound(str(user_id), path=["user"])
    user_limits.report_received_limit_if_reached(transaction, user_id, counted[0])


def _envelope_columns(
    transaction: DatabaseTransaction, incoming: "IncomingMessage", recipient: LocalRecipient
) -> dict[str, Any]:
    """Return the columns of the envelope and the time of expiry."""
    now = transaction.environment.now()
    return {
        "user_id": recipient.user_id,
        "domain_id": recipient.domain_id,
        "queue_id": incoming.trace.queue_id or new_queue_id(transaction.environment),
        "sender": make_storable(incoming.envelope_sender),
        "recipient": make_storable(recipient.address),
        "dsn_request": make_storable(
            _envelope_record(transaction.environment, incoming, recipient)
        ),
        "notified": False,
        "created_at": now,
        "expires_at": now + transaction.environment.options.quarantine_retention,
    }


def _envelope_record(
    environment: Environment, incoming: "IncomingMessage", recipient: LocalRecipient
) -> dict[str, str | None] | None:
    """Return the stored DSN request. SUCCESS is removed if the sender is not verified.

    A fetched message has no envelope; its record is the address of its account.
    """
    if incoming.fetched is not None:
        return {FETCHED_FOR: recipient.receiving_address}
    dsn_request = incoming.dsn_request_of_recipient_or_default(recipient)
    if success_dsn.is_sender_forged_or_unverified(environment, incoming):
        dsn_request = dsn_request.without_condition(NotifyCondition.SUCCESS)
    return record_unless_default_request(
        dsn_request, recipient.original_address or recipient.address
    )


def _message_columns(message: StorableMessage) -> dict[str, Any]:
    """Return the columns that show the message in lists."""
    columns = message_columns.content_and_reset_state_columns(message)
    names = (
        "subject",
        "from_name",
        "from_address",
        "size",
        "sha256",
        "mime_structure",
        "attachments",
    )
    stored_columns = {name: columns[name] for name in names}
    return {**stored_columns, "authentication": make_storable(message.authentication)}


def _reason_columns(reason: QuarantineReason) -> dict[str, Any]:
    """Return the columns of the score, the symbols and the virus."""
    symbols = [
        {
            "name": symbol.name[:MAX_NAME],
            "score": _bounded_score(symbol.score),
            "description": symbol.description and symbol.description[:MAX_DESCRIPTION],
        }
        for symbol in reason.symbols[:MAX_SYMBOLS]
    ]
    columns = {
        "score": _bounded_score(reason.score),
        "symbols": symbols,
        "tests": " ".join(str(symbol["name"]) for symbol in symbols),
        "virus": reason.virus and reason.virus[:MAX_NAME],
    }
    return {name: make_storable(value) for name, value in columns.items()}


def _bounded_score(score: float) -> float:
    """Return the score within the range that all readers support; NaN becomes 0."""
    return 0.0 if math.isnan(score) else min(max(score, -MAX_SCORE), MAX_SCORE)


def _insert_item_receipt_and_entry(
    transaction: DatabaseTransaction, item_row: Mapping[str, Any], blob_ids: Sequence[int]
) -> None:
    """Insert the quarantine item with its blob references, its receipt and its journal entry."""
    key, user_id = item_row["id"], item_row["user_id"]
    transaction.connection.execute(insert(QuarantineItem).values(item_row))
    needs = [{"item_id": key, "blob_id": blob} for blob in sorted(set(blob_ids))]
    transaction.connection.execute(insert(QuarantineBlob), needs)
    at = item_row["created_at"]
    transaction.execute_statements(
        [(message_insert.upsert_receipt(transaction.connection.dialect.name),
          {"digest": item_row["receipt"], "message_id": key, "at": at})]
    )  # fmt: skip
    transaction.record_entry(user_id, JournalEntry(EventType.QUARANTINE_HELD, [key]), at=at)


def _copy_for_legal_holds(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    item_row: Mapping[str, Any],
    blob_ids: Sequence[int],
) -> None:
    """Give legal holds of the account a copy: the message may never reach a mailbox."""
    facts = {
        **message_columns.content_and_reset_state_columns(message),
        "blob_id": item_row["blob_id"],
        "received_at": item_row["created_at"],
        "envelope_from": item_row["sender"],
        "envelope_to": [item_row["recipient"]],
    }
    held_copies.copy_received_message_to_legal_holds(
        transaction, item_row["user_id"], item_row["id"], facts, blob_ids
    )


def _delete_oldest_over_limit(
    transaction: DatabaseTransaction, user_id: int, new_item_id: int
) -> None:
    """Delete the oldest items beyond the limits of messages and bytes, never the new one."""
    options, item_count, size = transaction.environment.options, 0, 0
    statement = select(col(QuarantineItem.id), col(QuarantineItem.size)).where(
        col(QuarantineItem.user_id) == user_id
    )
    order = col(QuarantineItem.created_at).desc(), col(QuarantineItem.id).desc()
    deleted_ids = []
    for row in transaction.connection.execute(statement.order_by(*order)):
        item_count, size = item_count + 1, size + row.size
        over = (
            item_count > options.quarantine_max_messages_per_user
            or size > options.quarantine_max_bytes_per_user
        )
        if over and row.id != new_item_id:
            deleted_ids.append(row.id)
    for start in range(0, len(deleted_ids), MAX_IDS_PER_ROW):
        delete_quarantine_items(
            transaction,
            user_id,
            deleted_ids[start : start + MAX_IDS_PER_ROW],
            event_type=EventType.QUARANTINE_EXPIRED,
        )


def delete_quarantine_items(
    transaction: DatabaseTransaction,
    user_id: int,
    item_ids: Sequence[int],
    *,
    event_type: EventType,
) -> int:
    """Delete quarantine items of an account with a journal entry. Returns the number deleted.

    Legal holds that don't have them get a copy.
    """
    held_copies.copy_removed_quarantine_items_to_legal_holds(transaction, item_ids)
    these = col(QuarantineItem.id).in_(item_ids), col(QuarantineItem.user_id) == user_id
    removal = delete(QuarantineItem).where(*these).returning(col(QuarantineItem.id))
    deleted_ids = sorted(transaction.connection.execute(removal).scalars())
    if deleted_ids:
        transaction.record_entry(
            user_id,
            JournalEntry(event_type, deleted_ids),
            at=transaction.environment.now(),
        )
    return len(deleted_ids)


async def insert_due_notification_tasks(environment: Environment) -> int:
    """Create notification tasks for accounts with due quarantine items; return their number.

    The interval begins with the first item that no notification has listed. It is at most half of
    the retention of the quarantine.
    """
    now, longest = environment.now(), environment.options.quarantine_retention / 2
    reached = task_count = 0
    interval_column = col(User.quarantine_notification)
    is_due = or_(
        *(
            and_(
                interval_column == interval,
                col(QuarantineItem.created_at) <= now - min(wait, longest),
            )
            for interval, wait in NOTIFICATION_INTERVALS.items()
        )
    )
    waits = exists().where(
        col(Task.user_id) == col(User.id),
        col(Task.kind) == TaskKind.QUARANTINE_NOTIFICATION,
        col(Task.finished_at).is_(None),
    )
    statement = (
        select(col(User.id))
        .join(QuarantineItem, col(QuarantineItem.user_id) == col(User.id))
        .where(~col(QuarantineItem.notified), is_due, col(User.active), ~waits)
        .distinct()
        .order_by(col(User.id))
        .limit(PAGE_SIZE)
    )
    while rows := await environment.database.read(statement.where(col(User.id) > reached)):
        for row in rows:
            reached = row.id
            await environment.run_transaction(
                partial(_insert_notification_task, user_id=reached), reached
            )
            task_count += 1
    return task_count


def _insert_notification_task(transaction: DatabaseTransaction, user_id: int) -> None:
    """Insert the task that notifies one account."""
    now = transaction.environment.now()
    task = Task(
        id=transaction.environment.new_id(),
        kind=TaskKind.QUARANTINE_NOTIFICATION,
        user_id=user_id,
        created_at=now,
    )
    transaction.connection.execute(insert(Task).values(task.model_dump()))
    transaction.record_entry(user_id, JournalEntry(EventType.TASK_CREATED, [task.id]), at=now)
    transaction.workers_to_wake.add(TASKS)
