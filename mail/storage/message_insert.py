"""Insertion of messages into mailboxes, inside the transaction of the caller."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson
from sqlalchemy import UpdateBase, insert, update
from sqlmodel import col

from mail.limits import user_limits
from mail.storage import held_copies, thread_assignment
from mail.storage.blobs.blob_writer import (
    StoredMessageBlobs,
    blob_reference_insert_statements,
    upsert_blob_rows,
)
from mail.storage.message_columns import content_and_reset_state_columns
from mail.storage.message_flags import imap_flags, unique_keywords
from mail.storage.message_sort_keys import INSERT_SORT_KEYS, sort_key_columns
from mail.storage.quota import (
    HOURLY_COUNTED_KINDS,
    RECEIVED_KINDS,
    InsertKind,
    require_quota_for_growth,
    take_quota_and_count_received,
)
from mail.storage.storable_message import StorableMessage
from mail.storage.thread_assignment import ThreadAssignment
from mail.text.storable_text import make_storable
from models.admin.legal_holds import CopyOrigin
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.events.wakeups import UNINDEXED
from models.mailboxes.tables import Mailbox
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, insert_with_conflict
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    integer_parameter,
    prepare_cached,
)

_TAKE_UIDS = PreparedStatement(
    update(Mailbox)
    .where(
        col(Mailbox.id) == integer_parameter("box"),
        col(Mailbox.user_id) == integer_parameter("user"),
    )
    .values(
        uid_next=Mailbox.uid_next + integer_parameter("many"),
        message_count=Mailbox.message_count + integer_parameter("many"),
        unseen_count=Mailbox.unseen_count + integer_parameter("new"),
        size=Mailbox.size + integer_parameter("bytes"),
        modseq=integer_parameter("last"),
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
def upsert_receipt(dialect: str) -> UpdateBase:
    """The statement that stores a delivery receipt with `digest`, `message_id` and `at`."""
    new = insert_with_conflict(dialect, DeliveryReceipt)
    values = {"message_id": new.excluded.message_id, "at": new.excluded.at}
    return new.on_conflict_do_update(index_elements=["digest"], set_=values).inline()


def insert_message_and_take_quota(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
    placement: MessagePlacement,
    *,
    kind: InsertKind,
) -> InsertedMessage:
    """Insert a message: quota, mailbox counters, rows and journal.

    `kind` decides which event reports it: MESSAGE_RECEIVED for RECEIVED_KINDS, else MESSAGE_ADDED.
    Raises OverQuota, RateLimited if the user has received the limit of the hour, NotFound if user
    or mailbox is gone, and BlobRowDeleted.
    """
    (inserted,) = insert_messages_and_take_quota(
        transaction, [InsertItem(message, stored_blobs, placement)], kind=kind
    )
    return inserted


def insert_messages_and_take_quota(
    transaction: DatabaseTransaction,
    items: Sequence[InsertItem],
    *,
    kind: InsertKind,
) -> list[InsertedMessage]:
    """Insert messages of one user, with as few statements for many as for one.

    All messages are inserted or none. One UPDATE checks and takes the quota, so that two concurrent
    deliveries can't both use the last free bytes. Reports to the user a raised storage level, and
    that the hourly limit is reached. `kind` decides on the event: MESSAGE_RECEIVED for
    RECEIVED_KINDS, else MESSAGE_ADDED. Raises OverQuota, RateLimited, NotFound if user or mailbox
    is gone, and BlobRowDeleted.
    """
    user_id, size = items[0].placement.user_id, sum(message.size for message, _, _ in items)
    if metadata_bytes := sum(metadata_size(item.placement.public_metadata) for item in items):
        require_quota_for_growth(transaction, user_id, size + metadata_bytes)
    use = take_quota_and_count_received(
        transaction, user_id, size, message_count=len(items), kind=kind
    )
    inserted = _insert_after_quota(transaction, user_id, items, kind)
    user_limits.report_storage_level_if_raised(
        transaction, user_id, use, size, send_message=kind is not InsertKind.QUOTA_NOTICE
    )
    if kind in HOURLY_COUNTED_KINDS:
        user_limits.report_received_limit_if_reached(transaction, user_id, use, len(items))
    return inserted


def metadata_size(metadata: dict[str, Any] | None) -> int:
    """Return the size of the metadata of a message in bytes of JSON; 0 if there is none."""
    return 0 if metadata is None else len(orjson.dumps(metadata))


def _insert_after_quota(
    transaction: DatabaseTransaction, user_id: int, items: Sequence[InsertItem], kind: InsertKind
) -> list[InsertedMessage]:
    """Insert messages after their size was counted in the quota."""
    last = transaction.lock_stream_and_read_position(user_id)
    keys_and_subjects = [
        (message.facts.thread_keys, make_storable(message.facts.subject)) for message, _, _ in items
    ]
    assignments = thread_assignment.plan_thread_assignments_unless_merging(
        transaction, user_id, keys_and_subjects
    )
    if assignments is None:  # each message must find the threads that the one before has merged
        return [
            inserted
            for item in items
            for inserted in _insert_after_quota(transaction, user_id, [item], kind)
        ]
    pending_inserts = [
        _pending_insert(transaction, item, assignment, kind)
        for item, assignment in zip(items, assignments, strict=True)
    ]
    blobs = upsert_blob_rows(transaction, *(stored_blobs for _, stored_blobs, _ in items))
    inserted_by_id: dict[int, InsertedMessage] = {}
    rows, entries = list[StatementWithValues](), list[JournalEntry]()
    audited = False
    for mailbox_items in _group_by_mailbox_and_origin(pending_inserts):
        last += len(mailbox_items)
        uid_range = _add_pending_to_counters_and_take_uids(transaction, mailbox_items, last)
        for uid, pending in enumerate(mailbox_items, uid_range.uid_next - len(mailbox_items)):
            ids = [blobs[digest] for digest in pending.stored_blobs.all_digests]
            inserted_by_id[pending.message_id] = InsertedMessage(
                pending.message_id, uid, last, blobs[pending.stored_blobs.layout_digest], ids
            )
        message_rows = [
            _message_row(transaction, pending, inserted_by_id[pending.message_id], uid_range)
            for pending in mailbox_items
        ]
        rows += [sent for row in message_rows for sent in _row_statements(row)]
        entries.append(_journal_entry(message_rows, mailbox_items[0].placement, kind))
        audited = uid_range.audited
    _, entry_statements = transaction.lock_stream_and_plan_entry_statements(
        user_id, entries, at=transaction.environment.now()
    )
    transaction.execute_statements(
        [
            *thread_assignment.insert_statements(assignments),
            *rows,
            *_blob_reference_statements(pending_inserts, inserted_by_id),
            *entry_statements,
            *_receipt_statements(transaction, pending_inserts),
        ]
    )
    transaction.workers_to_wake.add(UNINDEXED)
    if (first := assignments[0]).other_thread_ids:  # it is the only one
        thread_assignment.merge_threads_unless_large(
            transaction, user_id, first.thread_id, first.other_thread_ids, items[0].placement.origin
        )
    if audited:
        _copy_for_legal_holds(transaction, user_id, pending_inserts, kind)
    return [inserted_by_id[pending.message_id] for pending in pending_inserts]


def _pending_insert(
    transaction: DatabaseTransaction, item: InsertItem, thread: ThreadAssignment, kind: InsertKind
) -> _PendingInsert:
    """The values of one insert. A received message of a muted thread is seen."""
    message, stored_blobs, placement = item
    seen = placement.seen or (thread.is_muted and kind in RECEIVED_KINDS)
    return _PendingInsert(
        transaction.environment.new_id(), message, stored_blobs, placement, thread, seen
    )


def _group_by_mailbox_and_origin(
    pending: Sequence[_PendingInsert],
) -> Iterable[list[_PendingInsert]]:
    """Group the messages of one mailbox and origin, which share one journal entry."""
    items_by_mailbox: dict[tuple[int, str | None], list[_PendingInsert]] = {}
    for item in pending:
        items_by_mailbox.setdefault((item.placement.mailbox_id, item.placement.origin), []).append(
            item
        )
    return items_by_mailbox.values()


def _message_row(
    transaction: DatabaseTransaction,
    pending: _PendingInsert,
    inserted: InsertedMessage,
    mailbox: ColumnRow,
) -> dict[str, Any]:
    """The values of the row of a message, by column."""
    now, placement, message = transaction.environment.now(), pending.placement, pending.message
    return {
        **content_and_reset_state_columns(message),
        "id": pending.message_id,
        "user_id": placement.user_id,
        "mailbox_id": placement.mailbox_id,
        "uid": inserted.uid,
        "modseq": inserted.modseq,
        "thread_id": pending.thread.thread_id,
        "blob_id": inserted.layout_blob_id,
        "received_at": placement.received_at,
        "listed_at": placement.received_at,
        "saved_at": now,  # an old message can be added today
        "expires_at": now + timedelta(seconds=mailbox.retention) if mailbox.retention else None,
        "seen": pending.seen,
        "flagged": placement.flagged,
        "answered": placement.answered,
        "draft": placement.draft,
        "keywords": unique_keywords(placement.keywords),
        "envelope_from": placement.envelope_from,
        "envelope_to": list(placement.envelope_to),
        "public_metadata": placement.public_metadata,
        "authentication": make_storable(message.authentication),
        "spam_report": make_storable(message.scan.json_to_store()) if message.scan else None,
        "filters": list(placement.filter_ids) or None,
        **source_columns(placement),
    }


def _row_statements(message_row: dict[str, Any]) -> list[StatementWithValues]:
    """The statements that insert the row of a message and its sort keys."""
    return [(_INSERT_MESSAGE, message_row), (INSERT_SORT_KEYS, sort_key_columns(message_row))]


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
        for item in pending
        for sent in blob_reference_insert_statements(
            item.message_id, inserted_by_id[item.message_id].blob_ids
        )
    ]


def _receipt_statements(
    transaction: DatabaseTransaction, pending: Sequence[_PendingInsert]
) -> list[StatementWithValues]:
    """The statements that store the delivery receipts."""
    new, now = upsert_receipt(transaction.connection.dialect.name), transaction.environment.now()
    return [
        (new, {"digest": item.placement.receipt_digest, "message_id": item.message_id, "at": now})
        for item in pending
        if item.placement.receipt_digest
    ]


def _copy_for_legal_holds(
    transaction: DatabaseTransaction,
    user_id: int,
    pending: Sequence[_PendingInsert],
    kind: InsertKind,
) -> None:
    for origin in CopyOrigin:
        if message_ids := [
            item.message_id for item in pending if _copy_origin(item.placement, kind) is origin
        ]:
            held_copies.copy_stored_messages_to_legal_holds(
                transaction, user_id, message_ids, origin
            )


def _add_pending_to_counters_and_take_uids(
    transaction: DatabaseTransaction, pending: Sequence[_PendingInsert], modseq: int
) -> ColumnRow:
    """Count the messages of one mailbox as `add_to_mailbox_counters_and_take_uids`."""
    placement, unseen_count = pending[0].placement, sum(not item.seen for item in pending)
    size = sum(item.message.size for item in pending)
    return add_to_mailbox_counters_and_take_uids(
        transaction,
        placement,
        modseq,
        message_count=len(pending),
        unseen_count=unseen_count,
        byte_count=size,
    )


def add_to_mailbox_counters_and_take_uids(  # noqa: PLR0913 - the counters of a mailbox
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
    uid_row = transaction.fetch_rows(
        _TAKE_UIDS,
        box=placement.mailbox_id,
        user=placement.user_id,
        many=message_count,
        new=unseen_count,
        bytes=byte_count,
        last=modseq,
        now=transaction.environment.now(),
    )
    if not uid_row:
        raise NotFound(str(placement.mailbox_id), path=["mailbox"])
    row: ColumnRow = uid_row[0]
    return row


def source_columns(placement: MessagePlacement) -> dict[str, Any]:
    """The values of the columns for the message that is answered or forwarded."""
    key, relation = placement.source or (None, None)
    return {"source_id": key, "source_relation": relation}


def _copy_origin(placement: MessagePlacement, kind: InsertKind) -> CopyOrigin:
    if kind in RECEIVED_KINDS:
        return CopyOrigin.RECEIVED
    return CopyOrigin.SAVED if placement.envelope_from is None else CopyOrigin.SENT
