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
    blob_reference_insert_statements,
    upsert_blob_rows,
)
from mail.storage.message_columns import content_and_reset_state_columns
from mail.storage.message_flags import MAX_KEYWORDS, imap_flags, unique_keywords
from mail.storage.message_insert import (
    InsertedMessage,
    InsertItem,
    MessagePlacement,
    add_to_mailbox_counters_and_take_uids,
    metadata_size,
    source_columns,
)
from mail.storage.message_sort_keys import sort_key_columns, upsert_sort_keys
from mail.storage.quota import error_of_refused_quota, require_quota_for_growth
from mail.storage.storable_message import StorableMessage
from mail.storage.thread_assignment import (
    delete_empty_threads_statement,
    new_thread_insert,
    thread_key_insert_statements,
)
from mail.text.storable_text import make_storable
from models.admin.legal_holds import CopyOrigin
from models.errors import Conflict, NotFound, StaleObject
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
    *("id", "mailbox_id", "uid", "modseq", "thread_id", "sha256", "size", "indexed", "expires_at"),
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
        message_count=Mailbox.message_count - 1,
        unseen_count=Mailbox.unseen_count - bindparam("unread", type_=BigInteger),
        size=Mailbox.size - bindparam("bytes", type_=BigInteger),
        modseq=bindparam("last"),
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
    clears_metadata: bool = False


def replace_draft_message(
    transaction: DatabaseTransaction,
    replacement: InsertItem,
    earlier: EarlierDraft,
    *,
    ignores_quota: bool = False,
) -> InsertedMessage:
    """Store a message in the place of an earlier one; the transaction holds the lock of the user.

    The message keeps its id, keywords and all values that the new one doesn't set; it gets a new
    UID. With `ignores_quota`, its growth is never refused. Raises Conflict if the earlier message
    is gone or its draft flag has changed, StaleObject if it has other content, and OverQuota,
    NotFound and BlobRowDeleted.
    """
    message, stored_blobs, placement = replacement
    row = _lock_unchanged_earlier_message(transaction, earlier, placement.user_id)
    modseq = transaction.reserve_positions_returning_last(placement.user_id, 1)
    now = transaction.environment.now()
    added_bytes = message.size - row.size
    new_columns = _placement_columns(placement, row, clears_metadata=earlier.clears_metadata)
    growth = metadata_size(new_columns["public_metadata"]) - metadata_size(row.public_metadata)
    usage = _add_to_quota(
        transaction, placement.user_id, added_bytes, growth, ignores_quota=ignores_quota
    )
    held_copies.copy_removed_messages_to_incomplete_holds(transaction, placement.user_id, [row.id])
    uid_and_counters = _update_counters_and_take_uid(transaction, message, row, placement, modseq)
    blob_ids = upsert_blob_rows(transaction, stored_blobs)
    uid, blob_id = uid_and_counters.uid_next - 1, blob_ids[stored_blobs.layout_digest]
    thread_id = _find_keep_or_create_thread(transaction, message.facts, row, placement.user_id)
    values = {
        **content_and_reset_state_columns(message),
        "mailbox_id": placement.mailbox_id,
        "uid": uid,
        "modseq": modseq,
        "thread_id": thread_id,
        "blob_id": blob_id,
        "received_at": placement.received_at,
        "listed_at": placement.received_at,
        "saved_at": now,
        "expires_at": now + timedelta(seconds=uid_and_counters.retention)
        if uid_and_counters.retention
        else row.expires_at,
        **new_columns,
    }
    _update_message_and_blob_references(transaction, row.id, values, list(blob_ids.values()))
    _insert_thread_keys_and_delete_empty_thread(
        transaction, message.facts, row, placement.user_id, thread_id
    )
    text_index.delete_message_from_indexes(
        transaction.connection, earlier.indexed_words, is_indexed=row.indexed
    )
    entry = _replacement_entry(row, placement, values)
    transaction.insert_entry_at_reserved_positions(placement.user_id, entry, at=now)
    transaction.workers_to_wake.add(UNINDEXED)
    if added_bytes > 0:
        user_limits.report_storage_level_if_raised(
            transaction, placement.user_id, usage, added_bytes
        )
    if uid_and_counters.audited:
        origin = CopyOrigin.SAVED if placement.envelope_from is None else CopyOrigin.SENT
        held_copies.copy_stored_messages_to_legal_holds(
            transaction, placement.user_id, [row.id], origin
        )
    return InsertedMessage(row.id, uid, modseq, blob_id, list(blob_ids.values()))


def _placement_columns(
    placement: MessagePlacement, earlier_row: ColumnRow, *, clears_metadata: bool
) -> dict[str, Any]:
    """Return flags, keywords, envelope and metadata: those of the placement, else the earlier."""
    keywords = unique_keywords([*earlier_row.keywords, *placement.keywords])
    return {
        "seen": placement.seen,
        "flagged": placement.flagged or earlier_row.flagged,
        "answered": earlier_row.answered,
        "draft": placement.draft,
        "envelope_from": placement.envelope_from,
        "envelope_to": list(placement.envelope_to),
        "keywords": keywords[:MAX_KEYWORDS],
        "public_metadata": earlier_row.public_metadata
        if placement.public_metadata is None and not clears_metadata
        else placement.public_metadata,
        **(source_columns(placement) if placement.source else {}),
    }


def _lock_unchanged_earlier_message(
    transaction: DatabaseTransaction, earlier: EarlierDraft, user_id: int
) -> ColumnRow:
    """Lock the message to replace and return its row. Raises Conflict or StaleObject."""
    row = transaction.connection.execute(
        _SELECT_EARLIER, {"key": earlier.id, "user": user_id}
    ).first()
    if row is None or row.draft is not earlier.must_be_draft:
        raise Conflict("The draft was deleted.", path=earlier.input_path)
    if row.sha256 != earlier.digest:
        raise StaleObject(current_modseq=row.modseq, path=earlier.input_path)
    return row


def _update_message_and_blob_references(
    transaction: DatabaseTransaction,
    message_id: int,
    values: Mapping[str, Any],
    blob_ids: list[int],
) -> None:
    """Update the row of the message and its sort keys, and let it reference these blobs only."""
    transaction.connection.execute(
        update(Message).where(col(Message.id) == message_id).values(**values)
    )
    transaction.connection.execute(
        delete(MessageBlob).where(col(MessageBlob.message_id) == message_id)
    )
    upsert = upsert_sort_keys(transaction.connection.dialect.name)
    transaction.execute_statements(
        [
            (upsert, sort_key_columns({**values, "id": message_id})),
            *blob_reference_insert_statements(message_id, blob_ids),
        ]
    )


def _insert_thread_keys_and_delete_empty_thread(
    transaction: DatabaseTransaction,
    message_facts: MessageFacts,
    earlier_row: ColumnRow,
    user_id: int,
    thread_id: int,
) -> None:
    """Add the keys of the message to its thread, and delete its earlier thread if that is empty."""
    if thread_id != earlier_row.thread_id:
        transaction.connection.execute(delete_empty_threads_statement([earlier_row.thread_id]))
    transaction.execute_statements(
        thread_key_insert_statements(transaction, user_id, message_facts.thread_keys, thread_id)
    )


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
    transaction: DatabaseTransaction,
    user_id: int,
    added_bytes: int,
    added_metadata_bytes: int,
    *,
    ignores_quota: bool,
) -> ColumnRow:
    """Count the added bytes of the message and return the new usage. Raises OverQuota.

    Database triggers count the metadata when they are stored. A message that doesn't grow, and
    metadata that don't, are never refused.
    """
    if added_metadata_bytes > 0 and not ignores_quota:
        require_quota_for_growth(transaction, user_id, added_bytes + added_metadata_bytes)
    platform = transaction.environment.options.users_default_quota
    parameters = {
        "user": user_id,
        "platform": platform,
        "more": added_bytes,
        "beyond": ignores_quota,
    }
    quota_row = transaction.connection.execute(_UPDATE_QUOTA, parameters).first()
    if quota_row is None:
        if ignores_quota:  # then only a missing user is a reason
            raise NotFound(str(user_id), path=["user"])
        raise error_of_refused_quota(transaction, user_id)
    return quota_row


def _update_counters_and_take_uid(
    transaction: DatabaseTransaction,
    message: StorableMessage,
    earlier_row: ColumnRow,
    placement: MessagePlacement,
    modseq: int,
) -> ColumnRow:
    """Update the counters of the old and the new mailbox, and take the next UID."""
    parameters = {
        "box": earlier_row.mailbox_id,
        "unread": int(not earlier_row.seen),
        "bytes": earlier_row.size,
        "last": modseq,
    }
    transaction.connection.execute(_UPDATE_OLD_MAILBOX, parameters)
    return add_to_mailbox_counters_and_take_uids(
        transaction,
        placement,
        modseq,
        unseen_count=int(not placement.seen),
        byte_count=message.size,
    )


def _find_keep_or_create_thread(
    transaction: DatabaseTransaction,
    message_facts: MessageFacts,
    earlier_row: ColumnRow,
    user_id: int,
) -> int:
    """The id of a thread that the message refers to, else its own if no other message is in it.

    Otherwise a new thread is created.
    """
    parameters = {"thread": earlier_row.thread_id, "key": earlier_row.id}
    is_only_message = (
        transaction.connection.execute(_SELECT_OTHER_IN_THREAD, parameters).first() is None
    )
    thread_parameters = {"user": user_id, "keys": message_facts.thread_keys}
    thread_ids = (
        set(transaction.connection.execute(_SELECT_THREADS_BY_KEY, thread_parameters).scalars())
        if message_facts.thread_keys
        else set()
    )
    if other_thread_ids := thread_ids - {earlier_row.thread_id} if is_only_message else thread_ids:
        return int(min(other_thread_ids))
    if not is_only_message:
        key, new = new_thread_insert(transaction, user_id, make_storable(message_facts.subject))
        transaction.execute_statements([new])
        return key
    thread_update = update(Thread).where(col(Thread.id) == earlier_row.thread_id)
    transaction.connection.execute(
        thread_update.values(subject=make_storable(message_facts.subject))
    )
    return int(earlier_row.thread_id)
