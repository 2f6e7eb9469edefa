"""Insertion of messages into mailboxes, inside the transaction of the caller."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import bindparam, case, func, insert, or_, select, update
from sqlmodel import col

from mail.limits import user_limits
from mail.limits.user_limits import STORAGE_QUOTA
from mail.storage import held_copies, thread_assignment
from mail.storage.blobs.blob_writer import (
    StoredMessageBlobs,
    insert_blob_rows,
    reference_statements,
)
from mail.storage.message_columns import content_columns
from mail.storage.message_flags import imap_flags
from mail.storage.storable_message import StorableMessage
from mail.storage.thread_assignment import ThreadAssignment
from mail.text.storable_text import make_storable
from models.admin.legal_holds import CopyOrigin
from models.errors import NotFound, OverQuota, RequestError
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.events.wakeups import UNINDEXED
from models.mailboxes.tables import Mailbox
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, UtcDateTime, insert_with_conflict
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    integer_parameter,
    prepare_cached,
)
from models.users.tables import User


class InsertKind(StrEnum):
    """The way a message comes to a user, which decides the limits it counts against."""

    ADDED_BY_USER = "PUT_IN"  # by the user: the quota
    RECEIVED = "RECEIVED"  # from outside: the quota, and the messages of an hour
    FETCHED = (
        "FETCHED"  # by a connector, as new mail: counted as RECEIVED, but never refused for it
    )
    RECEIVED_COPY = "AGAIN"  # a copy in another mailbox: the quota
    RELEASED = "RELEASED"  # from quarantine: its hour was counted before
    QUOTA_NOTICE = "NOTICE"  # a notice about the quota: never refused, and causes no other notice


RECEIVED_KINDS = frozenset(
    {InsertKind.RECEIVED, InsertKind.FETCHED, InsertKind.RECEIVED_COPY, InsertKind.RELEASED}
)
HOURLY_COUNTED_KINDS = frozenset({InsertKind.RECEIVED, InsertKind.FETCHED})
HOUR = timedelta(hours=1)  # for the limit of received messages
_IS_HOUR_RUNNING = col(User.received_until) > bindparam("now", type_=UtcDateTime)
_ADD_TO_QUOTA = (
    update(User)
    .where(col(User.id) == integer_parameter("user"), col(User.deleted_at).is_(None))
    .values(
        used=User.used + integer_parameter("bytes"),
        message_count=User.message_count + integer_parameter("many"),
    )
    .returning(col(User.used), STORAGE_QUOTA.label("allowed"))
)
_ADD_WITHIN_QUOTA = _ADD_TO_QUOTA.where(
    (STORAGE_QUOTA == 0) | (col(User.used) + integer_parameter("bytes") <= STORAGE_QUOTA)
)
ADD_TO_RECEIVED: dict[
    str, Any
] = {  # adds `many` messages; `until` is the end of an hour that begins now
    "received": case(
        (_IS_HOUR_RUNNING, User.received + integer_parameter("many")),
        else_=integer_parameter("many"),
    ),
    "received_until": case(
        (_IS_HOUR_RUNNING, col(User.received_until)), else_=bindparam("until", type_=UtcDateTime)
    ),
}
_RECEIVED_LIMIT = func.coalesce(col(User.received_per_hour), integer_parameter("hourly"))
# The UPDATE that counts also checks, so that concurrent deliveries can't pass the limit together.
IS_BELOW_RECEIVED_LIMIT = or_(
    _RECEIVED_LIMIT == 0,
    col(User.received_until).is_(None),
    ~_IS_HOUR_RUNNING,
    col(User.received) < _RECEIVED_LIMIT,
)
RECEIVED_COLUMNS = col(User.received), col(User.received_per_hour), col(User.received_until)
# The same statement counts received messages: a separate row would need another statement.
_ADD_RECEIVED = _ADD_WITHIN_QUOTA.values(**ADD_TO_RECEIVED).returning(*RECEIVED_COLUMNS)
_ADD_BY_KIND = {
    InsertKind.ADDED_BY_USER: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.RECEIVED: PreparedStatement(_ADD_RECEIVED.where(IS_BELOW_RECEIVED_LIMIT)),
    InsertKind.FETCHED: PreparedStatement(_ADD_RECEIVED),
    InsertKind.RECEIVED_COPY: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.RELEASED: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.QUOTA_NOTICE: PreparedStatement(_ADD_TO_QUOTA),
}
SELECT_QUOTA = select(col(User.used), STORAGE_QUOTA.label("allowed")).where(
    col(User.id) == bindparam("user"), col(User.deleted_at).is_(None)
)
_TAKE_UIDS = PreparedStatement(
    update(Mailbox)
    .where(
        col(Mailbox.id) == integer_parameter("box"),
        col(Mailbox.user_id) == integer_parameter("user"),
    )
    .values(
        uid_next=Mailbox.uid_next + integer_parameter("many"),
        total=Mailbox.total + integer_parameter("many"),
        unseen=Mailbox.unseen + integer_parameter("new"),
        size=Mailbox.size + integer_parameter("bytes"),
        modseq=integer_parameter("last"),
        modify_index=integer_parameter("last"),
    )
    .returning(
        col(Mailbox.uid_next), col(Mailbox.retention), held_copies.IS_AUDITED.label("audited")
    )
)
_INSERT_MESSAGE = PreparedStatement(insert(Message).inline())


@dataclass(frozen=True, slots=True)
class MessagePlacement:
    """The mailbox, flags and other values that a message is stored with."""

    user_id: int
    mailbox_id: int
    received_at: datetime
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    draft: bool = False
    keywords: Sequence[str] = ()
    envelope_from: str | None = None
    envelope_to: Sequence[str] = ()
    public_metadata: dict[str, Any] | None = None
    source: tuple[int, str] | None = (
        None  # the id of the message it answers or forwards, and the relation
    )
    origin: str | None = None
    receipt_digest: str | None = None  # identifies a repeated delivery
    filter_ids: Sequence[int] = ()  # the filters that matched
    mailbox_path: str | None = None  # overrides `mailbox_id`; created if it does not exist


@dataclass(frozen=True, slots=True)
class InsertedMessage:
    """The ids of a message that was stored."""

    message_id: int
    uid: int
    modseq: int
    layout_blob_id: int
    blob_ids: Sequence[int]  # including the layout


class InsertItem(NamedTuple):
    """A message to insert, with its stored blobs and its placement."""

    message: StorableMessage
    stored_blobs: StoredMessageBlobs
    placement: MessagePlacement


@dataclass(frozen=True, slots=True)
class _PendingInsert:
    """A message that is about to be inserted, with its thread."""

    message_id: int
    message: StorableMessage
    stored_blobs: StoredMessageBlobs
    placement: MessagePlacement
    thread: ThreadAssignment
    seen: bool


@prepare_cached
def upsert_receipt(dialect: str) -> Any:
    """The statement that stores a delivery receipt with `digest`, `message_id` and `at`."""
    new = insert_with_conflict(dialect, DeliveryReceipt)
    values = {"message_id": new.excluded.message_id, "at": new.excluded.at}
    return new.on_conflict_do_update(index_elements=["digest"], set_=values).inline()


def insert_message(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
    placement: MessagePlacement,
    *,
    kind: InsertKind = InsertKind.ADDED_BY_USER,
) -> InsertedMessage:
    """Insert a message: quota, mailbox counters, rows and journal.

    Raises OverQuota, TooMany if the user has received the limit of the hour, NotFound if user
    or mailbox is gone, and BlobRowDeleted.
    """
    (placed,) = insert_messages(
        transaction, [InsertItem(message, stored_blobs, placement)], kind=kind
    )
    return placed


def insert_messages(
    transaction: DatabaseTransaction,
    items: Sequence[InsertItem],
    *,
    kind: InsertKind = InsertKind.ADDED_BY_USER,
) -> list[InsertedMessage]:
    """Insert messages of one user, with as few statements for many as for one.

    One UPDATE checks and takes the quota, so that two concurrent deliveries can't both use the
    last free bytes. All messages are inserted or none. Raises as `insert_message`.
    """
    user_id, size = items[0].placement.user_id, sum(letter.size for letter, _, _ in items)
    use = take_quota_and_count_received(
        transaction, user_id, size, message_count=len(items), kind=kind
    )
    placed = _insert_after_quota(transaction, user_id, items, kind)
    user_limits.report_raised_storage_level(
        transaction, user_id, use, size, send_message=kind is not InsertKind.QUOTA_NOTICE
    )
    if kind in HOURLY_COUNTED_KINDS:
        user_limits.report_received_limit_if_reached(transaction, user_id, use, len(items))
    return placed


def _insert_after_quota(
    transaction: DatabaseTransaction, user_id: int, items: Sequence[InsertItem], kind: InsertKind
) -> list[InsertedMessage]:
    """Insert messages after their size was counted in the quota."""
    last = transaction.lock_stream(user_id)
    asked = [(one.facts.thread_keys, make_storable(one.facts.subject)) for one, _, _ in items]
    led = thread_assignment.plan_thread_assignments(transaction, user_id, asked)
    if led is None:  # each message must find the threads that the one before has merged
        return [
            one for item in items for one in _insert_after_quota(transaction, user_id, [item], kind)
        ]
    going = [
        _pending_insert(transaction, item, one, kind) for item, one in zip(items, led, strict=True)
    ]
    blobs = insert_blob_rows(transaction, *(kept for _, kept, _ in items))
    placed, rows, entries, audited = (
        dict[int, InsertedMessage](),
        list[StatementWithValues](),
        list[JournalEntry](),
        False,
    )
    for theirs in _group_by_mailbox(going):
        last += len(theirs)
        taken = _count_pending_and_take_uids(transaction, theirs, last)
        for uid, one in enumerate(theirs, taken.uid_next - len(theirs)):
            ids = [blobs[digest] for digest in one.stored_blobs.all_digests]
            placed[one.message_id] = InsertedMessage(
                one.message_id, uid, last, blobs[one.stored_blobs.layout_digest], ids
            )
        made = [_message_row(transaction, one, placed[one.message_id], taken) for one in theirs]
        rows += [(_INSERT_MESSAGE, row) for row in made]
        entries.append(_journal_entry(made, theirs[0].placement, kind))
        audited = taken.audited
    _, told = transaction.lock_stream_and_plan_entry_statements(
        user_id, entries, at=transaction.environment.now()
    )
    beside = [
        *_blob_reference_statements(going, placed),
        *told,
        *_receipt_statements(transaction, going),
    ]
    transaction.execute_statements([*thread_assignment.insert_statements(led), *rows, *beside])
    transaction.workers_to_wake.add(UNINDEXED)
    if led[0].other_thread_ids:  # it is the only one
        thread_assignment.merge_threads_unless_large(
            transaction,
            user_id,
            led[0].thread_id,
            led[0].other_thread_ids,
            items[0].placement.origin,
        )
    if audited:
        _copy_for_legal_holds(transaction, user_id, going, kind)
    return [placed[one.message_id] for one in going]


def _pending_insert(
    transaction: DatabaseTransaction, item: InsertItem, thread: ThreadAssignment, kind: InsertKind
) -> _PendingInsert:
    """The values of one insert. A received message of a muted thread is seen."""
    letter, kept, to = item
    seen = to.seen or (thread.is_muted and kind in RECEIVED_KINDS)
    return _PendingInsert(transaction.environment.new_id(), letter, kept, to, thread, seen)


def _group_by_mailbox(pending: Sequence[_PendingInsert]) -> Iterable[list[_PendingInsert]]:
    """Group the messages of one mailbox and origin, which share one journal entry."""
    found: dict[tuple[int, str | None], list[_PendingInsert]] = {}
    for one in pending:
        found.setdefault((one.placement.mailbox_id, one.placement.origin), []).append(one)
    return found.values()


def _message_row(
    transaction: DatabaseTransaction,
    pending: _PendingInsert,
    inserted: InsertedMessage,
    mailbox: ColumnRow,
) -> dict[str, Any]:
    """The values of the row of a message, by column."""
    now, to, letter = transaction.environment.now(), pending.placement, pending.message
    return {
        **content_columns(letter),
        "id": pending.message_id,
        "user_id": to.user_id,
        "mailbox_id": to.mailbox_id,
        "uid": inserted.uid,
        "modseq": inserted.modseq,
        "thread_id": pending.thread.thread_id,
        "blob_id": inserted.layout_blob_id,
        "received_at": to.received_at,
        "listed_at": to.received_at,
        "saved_at": now,  # an old message can be added today
        "expires_at": now + timedelta(seconds=mailbox.retention) if mailbox.retention else None,
        "seen": pending.seen,
        "flagged": to.flagged,
        "answered": to.answered,
        "draft": to.draft,
        "keywords": list(to.keywords),
        "envelope_from": to.envelope_from,
        "envelope_to": list(to.envelope_to),
        "public_metadata": to.public_metadata,
        "verification": make_storable(letter.verification),
        "spam": make_storable(letter.scan.json_to_store()) if letter.scan else None,
        "filters": list(to.filter_ids) or None,
        **source_columns(to),
    }


def _journal_entry(
    message_rows: Sequence[dict[str, Any]], placement: MessagePlacement, kind: InsertKind
) -> JournalEntry:
    """The journal entry of messages that were added to one mailbox."""
    facts = {
        "mailbox": placement.mailbox_id,
        "uid": [row["uid"] for row in message_rows],
        "flags": [imap_flags(row) for row in message_rows],
    }
    event_type = EventType.MESSAGE_RECEIVED if kind in RECEIVED_KINDS else EventType.MESSAGE_ADDED
    return JournalEntry(event_type, [row["id"] for row in message_rows], facts, placement.origin)


def _blob_reference_statements(
    pending: Sequence[_PendingInsert], inserted_by_id: Mapping[int, InsertedMessage]
) -> list[StatementWithValues]:
    return [
        sent
        for one in pending
        for sent in reference_statements(one.message_id, inserted_by_id[one.message_id].blob_ids)
    ]


def _receipt_statements(
    transaction: DatabaseTransaction, pending: Sequence[_PendingInsert]
) -> list[StatementWithValues]:
    """The statements that store the delivery receipts."""
    new, now = upsert_receipt(transaction.connection.dialect.name), transaction.environment.now()
    return [
        (new, {"digest": one.placement.receipt_digest, "message_id": one.message_id, "at": now})
        for one in pending
        if one.placement.receipt_digest
    ]


def _copy_for_legal_holds(
    transaction: DatabaseTransaction,
    user_id: int,
    pending: Sequence[_PendingInsert],
    kind: InsertKind,
) -> None:
    for origin in CopyOrigin:
        if theirs := [
            one.message_id for one in pending if _copy_origin(one.placement, kind) is origin
        ]:
            held_copies.copy_stored_messages(transaction, user_id, theirs, origin)


def _count_pending_and_take_uids(
    transaction: DatabaseTransaction, pending: Sequence[_PendingInsert], modseq: int
) -> ColumnRow:
    """Count the messages of one mailbox as `count_messages_and_take_uids`."""
    to, unseen = pending[0].placement, sum(not one.seen for one in pending)
    size = sum(one.message.size for one in pending)
    return count_messages_and_take_uids(
        transaction, to, modseq, message_count=len(pending), unseen_count=unseen, byte_count=size
    )


def count_messages_and_take_uids(  # noqa: PLR0913 - the counters of a mailbox
    transaction: DatabaseTransaction,
    placement: MessagePlacement,
    modseq: int,
    *,
    message_count: int = 1,
    unseen_count: int,
    byte_count: int,
) -> ColumnRow:
    """Count messages in a mailbox and take as many UIDs.

    The returned `uid_next` is one above the last of them. Raises NotFound.
    """
    taken = transaction.fetch_rows(
        _TAKE_UIDS,
        box=placement.mailbox_id,
        user=placement.user_id,
        many=message_count,
        new=unseen_count,
        bytes=byte_count,
        last=modseq,
        now=transaction.environment.now(),
    )
    if not taken:
        raise NotFound(str(placement.mailbox_id), path=["mailbox"])
    row: ColumnRow = taken[0]
    return row


def source_columns(placement: MessagePlacement) -> dict[str, Any]:
    """The values of the columns for the message that is answered or forwarded."""
    key, relation = placement.source or (None, None)
    return {"source_id": key, "source_relation": relation}


def _copy_origin(placement: MessagePlacement, kind: InsertKind) -> CopyOrigin:
    if kind in RECEIVED_KINDS:
        return CopyOrigin.RECEIVED
    return CopyOrigin.SAVED if placement.envelope_from is None else CopyOrigin.SENT


def take_quota_and_count_received(
    transaction: DatabaseTransaction,
    user_id: int,
    byte_count: int,
    *,
    message_count: int = 1,
    kind: InsertKind = InsertKind.ADDED_BY_USER,
) -> ColumnRow:
    """Count the bytes of messages as used; return the new `used`, and `allowed`.

    Raises OverQuota, TooMany if the user has received the limit of the hour, and NotFound.
    """
    platform = transaction.environment.options.users_default_quota
    given: dict[str, Any] = {
        "user": user_id,
        "platform": platform,
        "bytes": byte_count,
        "many": message_count,
    }
    if kind in HOURLY_COUNTED_KINDS:
        now = transaction.environment.now()
        given |= {"now": now, "until": now + HOUR}
    if kind is InsertKind.RECEIVED:
        given["hourly"] = transaction.environment.options.limits_received_per_hour
    taken = transaction.fetch_rows(_ADD_BY_KIND[kind], **given)
    if not taken:
        counted = kind is InsertKind.RECEIVED and user_limits.received_limit_error(
            transaction, user_id
        )
        raise counted or quota_error(transaction, user_id)
    row: ColumnRow = taken[0]
    return row


def quota_error(transaction: DatabaseTransaction, user_id: int) -> RequestError:
    """The reason why the quota was not taken: OverQuota, or NotFound if the user is gone."""
    given = {"user": user_id, "platform": transaction.environment.options.users_default_quota}
    row = transaction.connection.execute(SELECT_QUOTA, given).first()
    if row is None:
        return NotFound(str(user_id), path=["user"])
    return OverQuota(used=row.used, limit=row.allowed)
