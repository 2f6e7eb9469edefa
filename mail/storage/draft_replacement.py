"""Replacement of a stored message by a new one: a draft that is saved again keeps its id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, Boolean, bindparam, delete, or_, select, update
from sqlmodel import col

from mail.limits import user_limits
from mail.limits.user_limits import STORAGE_QUOTA
from mail.mime import MessageFacts
from mail.storage import held_copies
from mail.storage.blobs.blob_writer import (
    StoredMessageBlobs,
    insert_blob_rows,
    reference_statements,
)
from mail.storage.message_columns import content_columns
from mail.storage.message_flags import MAX_KEYWORDS, imap_flags
from mail.storage.message_insert import (
    InsertedMessage,
    MessagePlacement,
    count_messages_and_take_uids,
    quota_error,
    source_columns,
)
from mail.storage.storable_message import StorableMessage
from mail.storage.thread_assignment import (
    delete_empty_threads_statement,
    new_thread_insert,
    thread_key_insert_statements,
)
from mail.text.storable_text import make_storable
from models.admin.legal_holds import CopyOrigin
from models.errors import Conflict, StaleObject
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.events.wakeups import UNINDEXED
from models.files.blobs import MessageBlob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import DatabaseTransaction
from models.search import text_index
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User

INPUT_PATH = ("replaces",)
_MESSAGE_COLUMNS = {
    *("id", "mailbox_id", "uid", "modseq", "thread_id", "digest", "size", "indexed", "expires_at"),
    *("seen", "flagged", "answered", "draft", "keywords", "public_metadata"),
}
_SELECT_EARLIER = (
    select(*select_columns(Message, _MESSAGE_COLUMNS))
    .where(
        col(Message.id) == bindparam("key"),
        col(Message.user_id) == bindparam("user"),
        col(Message.mailbox_id).is_not(None),
    )
    .with_for_update()
)
_ADDED_BYTES = bindparam("more", type_=BigInteger)
_UPDATE_QUOTA = (
    update(User)
    .where(
        col(User.id) == bindparam("user"),
        col(User.deleted_at).is_(None),
        or_(
            bindparam("beyond", type_=Boolean),
            _ADDED_BYTES <= 0,
            STORAGE_QUOTA == 0,
            col(User.used) + _ADDED_BYTES <= STORAGE_QUOTA,
        ),
    )
    .values(used=col(User.used) + _ADDED_BYTES)
    .returning(col(User.used), STORAGE_QUOTA.label("allowed"))
)
_UPDATE_OLD_MAILBOX = (
    update(Mailbox)
    .where(col(Mailbox.id) == bindparam("box"))
    .values(
        total=Mailbox.total - 1,
        unseen=Mailbox.unseen - bindparam("unread", type_=BigInteger),
        size=Mailbox.size - bindparam("bytes", type_=BigInteger),
        modseq=bindparam("last"),
        modify_index=bindparam("last"),
    )
)
_SELECT_THREADS_BY_KEY = (
    select(col(ThreadKey.thread_id))
    .where(
        col(ThreadKey.user_id) == bindparam("user"),
        col(ThreadKey.key).in_(bindparam("keys", expanding=True)),
    )
    .distinct()
)
_SELECT_OTHER_IN_THREAD = (
    select(col(Message.id))
    .where(col(Message.thread_id) == bindparam("thread"), col(Message.id) != bindparam("key"))
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class EarlierDraft:
    """The message to replace, and its words in the text index (`indexing.words_of`)."""

    id: int
    digest: str
    indexed_words: Mapping[str, Any]
    input_path: Sequence[str] = INPUT_PATH  # path of the input field, for errors
    must_be_draft: bool = True  # the message must still be, or not be, a draft
    ignores_quota: bool = False  # its growth is never refused
    clears_metadata: bool = False


def replace_message(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
    placement: MessagePlacement,
    earlier: EarlierDraft,
) -> InsertedMessage:
    """Store a message in the place of an earlier one; the transaction holds the lock of the user.

    The message keeps its id, keywords and all values that the new one doesn't set; it gets a
    new UID. Raises Conflict if the earlier message is gone or its draft flag has changed, Stale
    if it has other content, and OverQuota, NotFound and BlobRowDeleted.
    """
    row = _lock_earlier_message(transaction, earlier, placement.user_id)
    last, now = transaction.reserve_positions(placement.user_id, 1), transaction.environment.now()
    more = message.size - row.size
    use = _add_to_quota(transaction, placement.user_id, more, ignores_quota=earlier.ignores_quota)
    held_copies.copy_messages_before_removal(transaction, placement.user_id, [row.id])
    taken = _update_counters_and_take_uid(transaction, message, row, placement, last)
    blobs = insert_blob_rows(transaction, stored_blobs)
    thread_id = _assign_thread(transaction, message.facts, row, placement.user_id)
    values = {
        **content_columns(message),
        "mailbox_id": placement.mailbox_id,
        "uid": taken.uid_next - 1,
        "modseq": last,
        "thread_id": thread_id,
        "blob_id": blobs[stored_blobs.layout_digest],
        "received_at": placement.received_at,
        "listed_at": placement.received_at,
        "saved_at": now,
        "expires_at": now + timedelta(seconds=taken.retention)
        if taken.retention
        else row.expires_at,
        "seen": placement.seen,
        "flagged": placement.flagged or row.flagged,
        "answered": row.answered,
        "draft": placement.draft,
        "envelope_from": placement.envelope_from,
        "envelope_to": list(placement.envelope_to),
        "keywords": list(dict.fromkeys([*row.keywords, *placement.keywords]))[:MAX_KEYWORDS],
        "public_metadata": row.public_metadata
        if placement.public_metadata is None and not earlier.clears_metadata
        else placement.public_metadata,
        **(source_columns(placement) if placement.source else {}),
    }
    _update_message(transaction, row.id, values, list(blobs.values()))
    if thread_id != row.thread_id:
        transaction.connection.execute(delete_empty_threads_statement([row.thread_id]))
    transaction.execute_statements(
        thread_key_insert_statements(
            transaction, placement.user_id, message.facts.thread_keys, thread_id
        )
    )
    text_index.delete_message_from_indexes(
        transaction.connection, earlier.indexed_words, is_indexed=row.indexed
    )
    entry = _replacement_entry(row, placement, values)
    transaction.insert_entry_at_reserved_positions(placement.user_id, entry, at=now)
    transaction.workers_to_wake.add(UNINDEXED)
    if more > 0:
        user_limits.report_raised_storage_level(transaction, placement.user_id, use, more)
    if taken.audited:
        origin = CopyOrigin.SAVED if placement.envelope_from is None else CopyOrigin.SENT
        held_copies.copy_stored_messages(transaction, placement.user_id, [row.id], origin)
    return InsertedMessage(
        row.id, taken.uid_next - 1, last, blobs[stored_blobs.layout_digest], list(blobs.values())
    )


def _lock_earlier_message(
    transaction: DatabaseTransaction, earlier: EarlierDraft, user_id: int
) -> ColumnRow:
    """Lock the message to replace and return its row. Raises Conflict or StaleObject."""
    row = transaction.connection.execute(
        _SELECT_EARLIER, {"key": earlier.id, "user": user_id}
    ).first()
    if row is None or row.draft is not earlier.must_be_draft:
        raise Conflict("the draft is gone", path=earlier.input_path)
    if row.digest != earlier.digest:
        raise StaleObject(current_modseq=row.modseq, path=earlier.input_path)
    return row


def _update_message(
    transaction: DatabaseTransaction,
    message_id: int,
    values: Mapping[str, Any],
    blob_ids: list[int],
) -> None:
    """Update the row of the message, and let it reference these blobs only."""
    transaction.connection.execute(
        update(Message).where(col(Message.id) == message_id).values(**values)
    )
    transaction.connection.execute(
        delete(MessageBlob).where(col(MessageBlob.message_id) == message_id)
    )
    transaction.execute_statements(reference_statements(message_id, blob_ids))


def _replacement_entry(
    earlier_row: ColumnRow, placement: MessagePlacement, values: Mapping[str, Any]
) -> JournalEntry:
    """The journal entry of a replaced message, with its old and new mailbox and UID."""
    facts = {
        "mailbox": placement.mailbox_id,
        "uid": [values["uid"]],
        "fromMailbox": earlier_row.mailbox_id,
        "fromUid": [earlier_row.uid],
        "flags": [imap_flags(values)],
    }
    return JournalEntry(EventType.MESSAGE_UPDATED, [earlier_row.id], facts, placement.origin)


def _add_to_quota(
    transaction: DatabaseTransaction, user_id: int, added_bytes: int, *, ignores_quota: bool
) -> ColumnRow:
    """Count the added bytes and return the new usage. Raises OverQuota.

    A message that doesn't grow is never refused.
    """
    platform = transaction.environment.options.users_default_quota
    given = {"user": user_id, "platform": platform, "more": added_bytes, "beyond": ignores_quota}
    taken = transaction.connection.execute(_UPDATE_QUOTA, given).first()
    if taken is None:
        raise quota_error(transaction, user_id)
    return taken


def _update_counters_and_take_uid(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    earlier_row: ColumnRow,
    placement: MessagePlacement,
    modseq: int,
) -> ColumnRow:
    """Update the counters of the old and the new mailbox, and take the next UID."""
    gone = {
        "box": earlier_row.mailbox_id,
        "unread": int(not earlier_row.seen),
        "bytes": earlier_row.size,
        "last": modseq,
    }
    transaction.connection.execute(_UPDATE_OLD_MAILBOX, gone)
    return count_messages_and_take_uids(
        transaction,
        placement,
        modseq,
        unseen_count=int(not placement.seen),
        byte_count=message.size,
    )


def _assign_thread(
    transaction: DatabaseTransaction,
    message_facts: MessageFacts,
    earlier_row: ColumnRow,
    user_id: int,
) -> int:
    """The id of a thread that the message refers to, else its own if no other message is in it.

    Otherwise a new thread is created.
    """
    given = {"thread": earlier_row.thread_id, "key": earlier_row.id}
    alone = transaction.connection.execute(_SELECT_OTHER_IN_THREAD, given).first() is None
    led = {"user": user_id, "keys": message_facts.thread_keys}
    known = (
        set(transaction.connection.execute(_SELECT_THREADS_BY_KEY, led).scalars())
        if message_facts.thread_keys
        else set()
    )
    if found := known - {earlier_row.thread_id} if alone else known:
        return int(min(found))
    if not alone:
        key, new = new_thread_insert(transaction, user_id, make_storable(message_facts.subject))
        transaction.execute_statements([new])
        return key
    mine = update(Thread).where(col(Thread.id) == earlier_row.thread_id)
    transaction.connection.execute(mine.values(subject=make_storable(message_facts.subject)))
    return int(earlier_row.thread_id)
