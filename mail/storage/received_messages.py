"""Storage of received messages: one transaction for each recipient."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import String, bindparam, select
from sqlmodel import col

from mail.envelope.local_recipient import LocalRecipient
from mail.limits import user_limits
from mail.limits.user_limits import ReachedLimit, UserLimitExceeded
from mail.mailboxes import creation
from mail.storage.blobs.blob_writer import (
    BlobRowDeleted,
    StoredMessageBlobs,
    inline_blobs_of_small_message,
    store_objects_and_prepare_blob_rows,
)
from mail.storage.message_insert import (
    InsertedMessage,
    MessagePlacement,
    insert_message_and_take_quota,
)
from mail.storage.parsed_message import parse_message
from mail.storage.quota import RECEIVED_KINDS, InsertKind
from mail.storage.storable_message import StorableMessage
from models.errors import OverQuota, require_found
from models.events.journal import PLATFORM
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import UtcDateTime
from models.store.prepared_statements import PreparedStatement
from models.users.tables import LimitKind

Result = TypeVar("Result")

THREAD_THRESHOLD = 64 * 1024  # bytes; a larger message is processed in a thread
_SELECT_BY_RECEIPT = PreparedStatement(
    select(col(Message.id), col(Message.uid), col(Message.modseq), col(Message.blob_id))
    .join(DeliveryReceipt, col(DeliveryReceipt.message_id) == col(Message.id))
    .where(
        col(DeliveryReceipt.digest) == bindparam("known", type_=String),
        col(DeliveryReceipt.at) > bindparam("since", type_=UtcDateTime),
    )
)


async def parse_storable_message(source: bytes | Path) -> StorableMessage:
    """Parse a message for storage."""
    message = await parse_message(source)
    return StorableMessage(
        message.facts,
        message.size,
        message.digest,
        message.layout_blob,
        message.part_blobs,
        message.structure_json,
    )


async def store_blobs_once_per_tenant(
    environment: Environment, tenant_id: int, message: StorableMessage, *, store_again: bool = False
) -> StoredMessageBlobs:
    """Store the blobs of a message, once for all its recipients in a tenant."""
    if store_again or tenant_id not in message.stored_blobs_by_tenant:
        small = inline_blobs_of_small_message(
            environment, tenant_id, message.layout_blob, message.part_blobs
        )
        message.stored_blobs_by_tenant[tenant_id] = small or asyncio.ensure_future(
            store_objects_and_prepare_blob_rows(
                environment,
                tenant_id,
                message.layout_blob,
                message.part_blobs,
                store_again=store_again,
                part_blobs_by_tenant=message.part_blobs_by_tenant,
            )
        )
    stored_blobs = await asyncio.shield(message.stored_blobs_by_tenant[tenant_id])
    environment.reach_fault_point("commit")
    return stored_blobs


async def store_blobs_and_run_transaction(
    environment: Environment,
    tenant_id: int,
    message: StorableMessage,
    function: Callable[[DatabaseTransaction, StoredMessageBlobs], Result],
    *stream_ids: int,
) -> Result:
    """Store the blobs of a message, and run `function` in a transaction that locks the streams.

    If the garbage collector has deleted the row of a blob meanwhile, the blobs are stored again,
    and `function` is called a second time in a new transaction.
    """
    return await store_all_blobs_and_run_transaction(
        environment,
        tenant_id,
        [message],
        lambda transaction, stored: function(transaction, *stored),
        *stream_ids,
    )


async def store_all_blobs_and_run_transaction(
    environment: Environment,
    tenant_id: int,
    messages: Sequence[StorableMessage],
    function: Callable[[DatabaseTransaction, Sequence[StoredMessageBlobs]], Result],
    *stream_ids: int,
) -> Result:
    """Run `function` in a transaction after the blobs of several messages are stored.

    See `store_blobs_and_run_transaction`.
    """
    stored_blobs = [
        await store_blobs_once_per_tenant(environment, tenant_id, message) for message in messages
    ]
    try:
        return await environment.run_transaction(
            lambda transaction: function(transaction, stored_blobs), *stream_ids
        )
    except BlobRowDeleted:
        stored_blobs = [
            await store_blobs_once_per_tenant(environment, tenant_id, message, store_again=True)
            for message in messages
        ]
        return await environment.run_transaction(
            lambda transaction: function(transaction, stored_blobs), *stream_ids
        )


async def store_once_for_recipient(
    environment: Environment,
    message: StorableMessage,
    recipient: LocalRecipient,
    sender: str,
    *,
    placement: MessagePlacement | None = None,
) -> InsertedMessage:
    """Store a message for one recipient, in INBOX or as `placement` says, durably.

    A repeated delivery with the same sender, recipient and content is recognized for a day, and
    returns the message that was stored first. Raises OverQuota if the message doesn't fit and
    RateLimited if the user has received the limit of the hour, and notifies the user of both;
    NotFound if the user is gone.
    """
    used_placement = placement or default_placement(environment, recipient, sender)
    inserted = await store_copies_once(
        environment,
        recipient,
        DeliveryCopies(receipt_digest(message, recipient, sender), [(message, used_placement)]),
    )
    return require_found(inserted, recipient.address)


def default_placement(
    environment: Environment, recipient: LocalRecipient, sender: str
) -> MessagePlacement:
    """The placement in the default mailbox of the recipient."""
    envelope: Any = {"envelope_from": sender, "envelope_to": [recipient.address]}
    return MessagePlacement(recipient.user_id, recipient.mailbox_id, environment.now(), **envelope)


def receipt_digest(message: StorableMessage, recipient: LocalRecipient, sender: str) -> str:
    """The digest that identifies a repeated delivery."""
    digest = message.received_digest or message.digest
    return hashlib.sha256(f"{sender}\0{recipient.user_id}\0{digest}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class DeliveryCopies:
    """The copies of a received message for several mailboxes of one recipient."""

    receipt_digest: str  # identifies a repeated delivery
    placements: Sequence[tuple[StorableMessage, MessagePlacement]]
    kind: InsertKind = InsertKind.RECEIVED
    queued_messages: Sequence[StorableMessage] = ()  # `after_insert` queues them


AfterInsert = Callable[
    [DatabaseTransaction, InsertedMessage | None, Sequence[StoredMessageBlobs]], None
]


async def store_copies_once(
    environment: Environment,
    recipient: LocalRecipient,
    copies: DeliveryCopies,
    after_insert: AfterInsert | None = None,
) -> InsertedMessage | None:
    """Store a message in several mailboxes of one recipient, in one transaction.

    Returns the first copy, or None without any. `after_insert` runs in the same transaction, but
    not for a repeated delivery. It gets the first copy and the blobs of the queued messages, for
    which PLATFORM is locked too. A mailbox gets the message once. Raises as
    `store_once_for_recipient`.
    """

    def insert_copies_or_find_earlier(
        transaction: DatabaseTransaction, stored_blobs: Sequence[StoredMessageBlobs]
    ) -> InsertedMessage | None:
        since = environment.now() - environment.options.duplicate_delivery_retention
        if earlier := transaction.fetch_rows(
            _SELECT_BY_RECEIPT, known=copies.receipt_digest, since=since
        ):
            row = earlier[0]
            return InsertedMessage(row.id, row.uid, row.modseq, row.blob_id, [row.blob_id])
        copy_count = len(copies.placements)
        inserted = insert_copies_in_mailboxes(transaction, copies, stored_blobs[:copy_count])
        if after_insert is not None:
            after_insert(transaction, inserted, stored_blobs[copy_count:])
        return inserted

    messages = [*(message for message, _ in copies.placements), *copies.queued_messages]
    streams = [PLATFORM, recipient.user_id] if copies.queued_messages else [recipient.user_id]
    try:
        return await store_all_blobs_and_run_transaction(
            environment, recipient.tenant_id, messages, insert_copies_or_find_earlier, *streams
        )
    except UserLimitExceeded as refusal:
        await user_limits.report_refusal_once_per_period(
            environment, recipient.user_id, refusal.limit
        )
        raise
    except OverQuota as full:
        reached = ReachedLimit(LimitKind.STORAGE, full.used, full.limit, is_refusal=True)
        await user_limits.report_refusal_once_per_period(environment, recipient.user_id, reached)
        raise


def insert_copies_in_mailboxes(
    transaction: DatabaseTransaction,
    copies: DeliveryCopies,
    stored_blobs: Sequence[StoredMessageBlobs],
) -> InsertedMessage | None:
    """Insert the copies of a message in the transaction of the caller; return the first, or None.

    Raises as `insert_message_and_take_quota`.
    """
    first, thread_ids = None, set[int]()
    for (message, placement), message_blobs in zip(copies.placements, stored_blobs, strict=True):
        mailbox = resolve_or_create_mailbox(transaction, placement)
        if mailbox.mailbox_id not in thread_ids:
            thread_ids.add(mailbox.mailbox_id)
            mailbox = replace(mailbox, receipt_digest=None if first else copies.receipt_digest)
            arrives = copies.kind in RECEIVED_KINDS
            kind = InsertKind.RECEIVED_COPY if first and arrives else copies.kind
            inserted = insert_message_and_take_quota(
                transaction, message, message_blobs, mailbox, kind=kind
            )
            first = first or inserted
    return first


def resolve_or_create_mailbox(
    transaction: DatabaseTransaction, placement: MessagePlacement
) -> MessagePlacement:
    """The placement with the mailbox id of its path; the mailbox is created if it is missing."""
    if placement.mailbox_path is None:
        return placement
    return replace(
        placement,
        mailbox_id=creation.find_or_create_mailbox_id_or_none_at_limit(
            transaction, placement.user_id, placement.mailbox_path
        )
        or placement.mailbox_id,
    )
