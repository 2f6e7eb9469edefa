"""Copies of messages for legal holds, made in the transaction that changes the message.

The copies of a legal hold form a hash chain: the hash of a copy covers the hash before it and
HASHED_COLUMNS, among them the digest of the bytes. A copy that is changed, inserted or removed
makes all later hashes wrong.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Select, bindparam, exists, func, insert, select, update
from sqlmodel import col

from mail.archives import mbox_format
from mail.storage.blobs import blob_reader
from mail.storage.blobs.damage_check import (
    MAX_VERIFIED_BYTES,
    require_intact_blobs_and_return_budget,
)
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.message_layout import parse_layout, rebuild_message
from models.admin.legal_holds import CopyOrigin, HeldCopy, LegalHold, LegalHoldBlob
from models.files.blobs import Blob, MessageBlob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import ColumnRow, UtcDateTime, select_columns

COPIES_PER_READ = 1000  # copies that one statement reads
BLOBS_PER_READ = 100  # blob rows that one statement reads, some with their bytes
HASHED_COLUMNS = (  # what the hash of a copy covers besides the previous hash
    "legal_hold_id", "position", "origin_id", "origin", "mailbox_path", "sha256", "size",
    "received_at", "envelope_from", "envelope_to", "copied_at",
)  # fmt: skip
COPIED_COLUMNS = (  # columns that a copy takes from the message
    "sha256", "size", "blob_id", "received_at", "date", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "message_id", "preview", "attachment_count", "envelope_from",
    "envelope_to",
)  # fmt: skip
QUARANTINE_COLUMNS = (
    "id", "user_id", "created_at", "sender", "recipient", "sha256", "size", "blob_id", "subject",
    "from_name", "from_address", "attachments",
)  # fmt: skip

_IS_RUNNING = (
    col(LegalHold.ended_at).is_(None),
    col(LegalHold.expires_at) > bindparam("now", type_=UtcDateTime),
)
IS_AUDITED: Any = (  # SQL: true if `user` is audited at `now`
    exists().where(col(LegalHold.user_id) == bindparam("user"), *_IS_RUNNING).correlate(None)
)
_SELECT_RUNNING_LEGAL_HOLDS = select(*select_columns(LegalHold)).where(
    col(LegalHold.user_id) == bindparam("user"), *_IS_RUNNING
)
_SELECT_RUNNING_LEGAL_HOLDS_OF_QUARANTINE_ITEMS = select(*select_columns(LegalHold)).where(
    col(LegalHold.user_id).in_(
        select(col(QuarantineItem.user_id)).where(
            col(QuarantineItem.id).in_(bindparam("ids", expanding=True))
        )
    ),
    *_IS_RUNNING,
)
_SELECT_QUARANTINE_ITEMS = (
    select(*select_columns(QuarantineItem, QUARANTINE_COLUMNS))
    .where(col(QuarantineItem.id).in_(bindparam("ids", expanding=True)))
    .order_by(col(QuarantineItem.id))
)
_SELECT_QUARANTINE_BLOB_IDS: Select[*tuple[Any, ...]] = select(
    col(QuarantineBlob.item_id).label("origin_id"), col(QuarantineBlob.blob_id)
).where(col(QuarantineBlob.item_id).in_(bindparam("ids", expanding=True)))
_SELECT_MESSAGES = (
    select(
        *select_columns(Message, ("id", "deleted_at", *COPIED_COLUMNS)),
        func.coalesce(col(Mailbox.path), col(Message.deleted_from)).label("mailbox_path"),
    )
    .outerjoin(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
    .where(col(Message.id).in_(bindparam("ids", expanding=True)))
    .order_by(col(Message.id))
)
_SELECT_BLOB_IDS: Select[*tuple[Any, ...]] = select(
    col(MessageBlob.message_id).label("origin_id"), col(MessageBlob.blob_id)
).where(col(MessageBlob.message_id).in_(bindparam("ids", expanding=True)))
_SELECT_EXISTING_COPIES = select(col(HeldCopy.origin_id), col(HeldCopy.sha256)).where(
    col(HeldCopy.legal_hold_id) == bindparam("legal_hold"),
    col(HeldCopy.origin_id).in_(bindparam("ids", expanding=True)),
)
_UPDATE_COUNTERS = (
    update(LegalHold)
    .where(col(LegalHold.id) == bindparam("legal_hold"))
    .values(copies=LegalHold.copies + bindparam("many"), size=LegalHold.size + bindparam("bytes"))
    .returning(col(LegalHold.copies), col(LegalHold.head))
)
_SELECT_BLOBS: Select[*tuple[Any, ...]] = (
    select(*blob_reader.COLUMNS)
    .join(LegalHoldBlob, col(LegalHoldBlob.blob_id) == col(Blob.id))
    .where(col(LegalHoldBlob.copy_id) == bindparam("copy"))
)


def has_legal_hold_with_uncopied_messages(user_id: Any) -> ColumnElement[bool]:
    """SQL: true if a legal hold of this user has not yet copied the existing messages."""
    return exists().where(
        col(LegalHold.user_id) == user_id, ~col(LegalHold.copied), col(LegalHold.ended_at).is_(None)
    )


def is_any_in_period(legal_hold: Any, *times: datetime) -> bool:
    """True if one of the times is in the period of the legal hold."""
    return any(
        (legal_hold.starts_at is None or legal_hold.starts_at <= at)
        and (legal_hold.ends_at is None or at < legal_hold.ends_at)
        for at in times
    )


def copy_stored_messages_to_legal_holds(
    transaction: DatabaseTransaction, user_id: int, message_ids: Sequence[int], origin: CopyOrigin
) -> None:
    """Copy messages that were just stored, for all running legal holds of their user.

    A message is copied if its arrival or the present time is in the period of the legal hold, so
    that a message with an old date can't escape the legal hold.
    """
    now, running = transaction.environment.now(), _load_running_legal_holds(transaction, user_id)
    if running:
        rows = transaction.connection.execute(_SELECT_MESSAGES, {"ids": list(message_ids)}).all()
        for legal_hold in running:
            _copy_missing_messages(
                transaction,
                legal_hold,
                [row for row in rows if is_any_in_period(legal_hold, row.received_at, now)],
                origin,
            )


def copy_sent_message_to_legal_holds(
    transaction: DatabaseTransaction,
    user_id: int,
    submission_id: int,
    column_values: Mapping[str, Any],
    blob_ids: Sequence[int],
) -> None:
    """Copy a submission that leaves no message in a mailbox to the user's running legal holds."""
    entry = _unfiled_entry(submission_id, CopyOrigin.SENT, column_values)
    _copy_unfiled_message_to_legal_holds(transaction, user_id, entry, blob_ids)


async def has_running_legal_hold(environment: Environment, user_id: int) -> bool:
    """True if a legal hold of the user is running, whatever its period."""
    parameters = {"user": user_id, "now": environment.now()}
    return bool(await environment.database.read(_SELECT_RUNNING_LEGAL_HOLDS, parameters))


def copy_received_message_to_legal_holds(
    transaction: DatabaseTransaction,
    user_id: int,
    origin_id: int,
    column_values: Mapping[str, Any],
    blob_ids: Sequence[int],
) -> None:
    """Copy a received message that goes to no mailbox to the user's running legal holds.

    `origin_id` is the quarantine item, or a new id for a message that rules discard.
    """
    entry = _unfiled_entry(origin_id, CopyOrigin.RECEIVED, column_values)
    _copy_unfiled_message_to_legal_holds(transaction, user_id, entry, blob_ids)


def _unfiled_entry(
    origin_id: int, origin: CopyOrigin, column_values: Mapping[str, Any]
) -> dict[str, Any]:
    """The column values of a copy of a message that is in no mailbox."""
    copied_values = {name: column_values[name] for name in COPIED_COLUMNS}
    return {**copied_values, "origin_id": origin_id, "mailbox_path": None, "origin": origin}


def _copy_unfiled_message_to_legal_holds(
    transaction: DatabaseTransaction, user_id: int, entry: dict[str, Any], blob_ids: Sequence[int]
) -> None:
    """Append the entry to all running legal holds that include its arrival or the present time."""
    now = transaction.environment.now()
    for legal_hold in _load_running_legal_holds(transaction, user_id):
        if is_any_in_period(legal_hold, entry["received_at"], now):
            _append_copies(transaction, legal_hold, [entry], {entry["origin_id"]: blob_ids})


def copy_removed_messages_to_incomplete_holds(
    transaction: DatabaseTransaction, user_id: int, message_ids: Sequence[int]
) -> None:
    """Copy messages before they are removed or replaced, for incomplete legal holds."""
    late = [
        legal_hold
        for legal_hold in _load_running_legal_holds(transaction, user_id)
        if not legal_hold.copied
    ]
    if late:
        rows = transaction.connection.execute(_SELECT_MESSAGES, {"ids": list(message_ids)}).all()
        for legal_hold in late:
            _copy_missing_messages(
                transaction,
                legal_hold,
                [row for row in rows if is_any_in_period(legal_hold, row.received_at)],
            )


def copy_removed_quarantine_items_to_legal_holds(
    transaction: DatabaseTransaction, item_ids: Sequence[int]
) -> None:
    """Copy quarantined messages before they are removed, for all running legal holds.

    A legal hold that was running when a message was quarantined has its copy.
    """
    ids = list(item_ids)
    running = transaction.connection.execute(
        _SELECT_RUNNING_LEGAL_HOLDS_OF_QUARANTINE_ITEMS,
        {"ids": ids, "now": transaction.environment.now()},
    ).all()
    if not running:
        return
    items = transaction.connection.execute(_SELECT_QUARANTINE_ITEMS, {"ids": ids}).all()
    for legal_hold in running:
        _append_missing_copies(
            transaction,
            legal_hold,
            [
                _entry_from_quarantine_item(item)
                for item in items
                if item.user_id == legal_hold.user_id
                and is_any_in_period(legal_hold, item.created_at)
            ],
            _SELECT_QUARANTINE_BLOB_IDS,
        )


def _entry_from_quarantine_item(item: ColumnRow) -> dict[str, Any]:
    """The column values of a copy, as far as the quarantine item has them."""
    shared = ("sha256", "size", "blob_id", "subject", "from_name", "from_address")
    return {
        **{name: getattr(item, name) for name in shared},
        "origin_id": item.id,
        "mailbox_path": None,
        "origin": CopyOrigin.RECEIVED,
        "received_at": item.created_at,
        "envelope_from": item.sender,
        "envelope_to": [item.recipient],
        "attachment_count": len(item.attachments),
    }


def copy_messages_without_copy(
    transaction: DatabaseTransaction, legal_hold: ColumnRow, message_ids: Sequence[int]
) -> int:
    """Copy the messages that the legal hold has no copy of and return their number."""
    return _copy_missing_messages(
        transaction,
        legal_hold,
        transaction.connection.execute(_SELECT_MESSAGES, {"ids": list(message_ids)}).all(),
    )


def _load_running_legal_holds(
    transaction: DatabaseTransaction, user_id: int
) -> Sequence[ColumnRow]:
    return transaction.connection.execute(
        _SELECT_RUNNING_LEGAL_HOLDS, {"user": user_id, "now": transaction.environment.now()}
    ).all()


def _copy_missing_messages(
    transaction: DatabaseTransaction,
    legal_hold: Any,
    message_rows: Sequence[ColumnRow],
    origin: CopyOrigin | None = None,
) -> int:
    """Copy the messages that the legal hold has no copy of and return their number."""
    entries = [
        {
            **{name: getattr(row, name) for name in COPIED_COLUMNS},
            "origin_id": row.id,
            "mailbox_path": row.mailbox_path,
            "origin": origin or (CopyOrigin.DELETED if row.deleted_at else CopyOrigin.STORED),
        }
        for row in message_rows
    ]
    return _append_missing_copies(transaction, legal_hold, entries, _SELECT_BLOB_IDS)


def _append_missing_copies(
    transaction: DatabaseTransaction,
    legal_hold: Any,
    entries: Sequence[dict[str, Any]],
    select_blob_ids: Select[*tuple[Any, ...]],
) -> int:
    """Append the entries that the legal hold has no copy of and return their number."""
    parameters = {"legal_hold": legal_hold.id, "ids": [entry["origin_id"] for entry in entries]}
    existing_copies = {
        (copy_row.origin_id, copy_row.sha256)
        for copy_row in transaction.connection.execute(_SELECT_EXISTING_COPIES, parameters)
    }
    missing = [
        entry
        for entry in entries
        if (entry["origin_id"], entry["sha256"])
        not in existing_copies  # a draft that was saved again is another message
    ]
    if missing:
        blobs: defaultdict[int, list[int]] = defaultdict(list)
        for row in transaction.connection.execute(
            select_blob_ids, {"ids": [entry["origin_id"] for entry in missing]}
        ):
            blobs[row.origin_id].append(row.blob_id)
        _append_copies(transaction, legal_hold, missing, blobs)
    return len(missing)


def _append_copies(
    transaction: DatabaseTransaction,
    legal_hold: Any,
    copy_values: Sequence[dict[str, Any]],
    blob_ids_by_origin: Mapping[int, Sequence[int]],
) -> None:
    """Append copies to the hash chain of a legal hold. Locks the row of the legal hold."""
    size = sum(entry["size"] for entry in copy_values)
    parameters = {"legal_hold": legal_hold.id, "many": len(copy_values), "bytes": size}
    count, head = transaction.connection.execute(_UPDATE_COUNTERS, parameters).one()
    rows, needs = [], []
    for position, entry in enumerate(copy_values, count - len(copy_values) + 1):
        row = {
            **entry,
            "id": transaction.environment.new_id(),
            "legal_hold_id": legal_hold.id,
            "position": position,
            "copied_at": transaction.environment.now(),
        }
        head = row["chain_hash"] = chain_hash(head, row)
        rows.append(row)
        blob_ids = {*blob_ids_by_origin.get(entry["origin_id"], ()), entry["blob_id"]}
        needs += [{"copy_id": row["id"], "blob_id": blob} for blob in sorted(blob_ids)]
    transaction.connection.execute(insert(HeldCopy), rows)
    transaction.connection.execute(insert(LegalHoldBlob), needs)
    transaction.connection.execute(
        update(LegalHold).where(col(LegalHold.id) == legal_hold.id).values(head=head)
    )


def chain_hash(previous_hash: str, copy_values: Mapping[str, Any]) -> str:
    """The hash of a copy, which covers the hash of the previous copy."""
    claimed = {name: _json_value(copy_values[name]) for name in HASHED_COLUMNS}
    text = orjson.dumps([previous_hash, claimed], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def _json_value(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


async def find_first_broken_position(environment: Environment, legal_hold: ColumnRow) -> int | None:
    """Return the first position of the hash chain with a wrong copy, or None if all are right.

    If copies are missing at the end, this is the position after the last copy.
    """
    reached, head = 0, ""
    statement = select(*select_columns(HeldCopy, {*HASHED_COLUMNS, "chain_hash"})).where(
        col(HeldCopy.legal_hold_id) == legal_hold.id, col(HeldCopy.position) <= legal_hold.copies
    )
    while True:
        part = statement.where(col(HeldCopy.position) > reached).order_by(col(HeldCopy.position))
        rows = await environment.database.read(part.limit(COPIES_PER_READ))
        for row in rows:
            head = chain_hash(head, row._asdict())
            reached += 1
            if row.position != reached or row.chain_hash != head:
                return reached
        if len(rows) < COPIES_PER_READ:
            return None if (reached, head) == (legal_hold.copies, legal_hold.head) else reached + 1


async def read_copied_message(environment: Environment, copy: ColumnRow) -> bytes:
    """Read the message of a copy, byte for byte. Raises CorruptBlob if it is lost or damaged."""

    async def read_blob(condition: ColumnElement[bool]) -> bytes:
        for row in await environment.database.read(
            _SELECT_BLOBS.where(condition), {"copy": copy.id}
        ):
            return await blob_reader.read_and_verify_content(environment.object_store, row)
        raise CorruptBlob(f"A part of the copy {copy.id} of a legal hold is missing")

    skeleton = parse_layout(await read_blob(col(Blob.id) == copy.blob_id))
    parts = rebuild_message(skeleton, lambda digest: read_blob(col(Blob.digest) == digest))
    return b"".join([part async for part in parts])


async def require_intact_blobs_of_copies(
    environment: Environment, legal_hold_id: int, last_position: int
) -> None:
    """Raise CorruptBlob if a blob of the copies up to `last_position` is damaged.

    See `require_intact_blobs_and_return_budget` for the limit of bytes that are read.
    """
    held_blobs = (
        select(col(LegalHoldBlob.blob_id))
        .join(HeldCopy, col(HeldCopy.id) == col(LegalHoldBlob.copy_id))
        .where(
            col(HeldCopy.legal_hold_id) == legal_hold_id, col(HeldCopy.position) <= last_position
        )
    )
    statement = (
        select(*blob_reader.COLUMNS).where(col(Blob.id).in_(held_blobs)).order_by(col(Blob.id))
    )
    budget, reached = MAX_VERIFIED_BYTES, 0
    while rows := await environment.database.read(
        statement.where(col(Blob.id) > reached).limit(BLOBS_PER_READ)
    ):
        budget = await require_intact_blobs_and_return_budget(
            environment.object_store, rows, budget
        )
        reached = rows[-1].id


async def stream_mbox(
    environment: Environment, legal_hold_id: int, last_position: int
) -> AsyncGenerator[bytes]:
    """Yield the copies up to `last_position` in mboxrd format, one message at a time."""
    names = ("id", "position", "blob_id", "received_at", "envelope_from", "from_address")
    statement = select(*select_columns(HeldCopy, names)).where(
        col(HeldCopy.legal_hold_id) == legal_hold_id, col(HeldCopy.position) <= last_position
    )
    reached = 0
    while True:
        part = statement.where(col(HeldCopy.position) > reached).order_by(col(HeldCopy.position))
        rows = await environment.database.read(part.limit(COPIES_PER_READ))
        for row in rows:
            sender = row.envelope_from or row.from_address
            raw = await read_copied_message(environment, row)
            yield await asyncio.to_thread(
                mbox_format.encode_mbox_entry, raw, sender, row.received_at
            )
            reached = row.position
        if len(rows) < COPIES_PER_READ:
            return
