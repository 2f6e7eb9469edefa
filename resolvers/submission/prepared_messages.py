"""Messages that are ready to be queued, with the copy that is stored for the sender."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mail.delivery import recipient_rewrites
from mail.envelope.dsn_parameters import ALL_REPORTS, DsnRequest
from mail.logs.message_entries import LimitedMessage
from mail.storage import openpgp_encryption
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.message_insert import MessagePlacement
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.storage.storable_message import StorableMessage
from models.errors import ServiceUnavailable
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes.special_mailboxes import placement_in_ensured_scheduled_mailbox
from resolvers.submission import outgoing_scan
from resolvers.submission.message_source import source_id_and_relation_or_none
from resolvers.submission.outgoing_messages import ComposedMessage, SendRequest
from resolvers.submission.schedule import is_held

NO_ROOM_WARNING = "It is sent, but there was no room for a copy."
NO_FOLDER_WARNING = "It is sent, but there is no folder for a copy."
UNUSABLE_KEY_WARNING = "It is sent, but the key the copy would be encrypted to is of no use."


@dataclass(frozen=True, slots=True)
class BccCopyRecipients:
    """The addresses that BCC rules of a tenant copy a message to.

    The copies belong to the tenant, and no account has an event of them.
    """

    tenant_id: int
    domain_id: int | None  # whose administrators see the copies
    addresses: Sequence[str] = ()

    @property
    def stream_ids(self) -> list[int]:
        """PLATFORM, which the transaction must lock if there are copies; else nothing."""
        return [PLATFORM] if self.addresses else []


@dataclass(frozen=True, slots=True)
class PreparedMessage:
    """A message that is ready to be stored and queued."""

    message: StorableMessage
    copy: StorableMessage  # for the sender; can be encrypted
    sender: str
    recipients: Sequence[str]
    copy_place: MessagePlacement | None  # None: no copy is stored
    request: SendRequest
    copy_recipients: BccCopyRecipients
    dsn_requests: Mapping[str, DsnRequest] = field(default_factory=dict)
    no_copy_reason: str = NO_ROOM_WARNING  # warning text if no copy is stored
    sent_mailbox_id: int | None = None  # of a held message: the mailbox of the copy after the hold

    def limited_message(self) -> LimitedMessage:
        """Return the facts for the log if a limit refuses the message."""
        facts = self.message.facts
        return LimitedMessage(self.sender, self.recipients, facts.subject, facts.message_id)


async def scan_composed_message(
    ctx: Context, account: ColumnRow, composed: ComposedMessage
) -> None:
    """Scan a message, if possible before its encryption. Raises Forbidden if it is rejected."""
    raw = composed.raw if composed.readable_copy is None else composed.readable_copy
    await outgoing_scan.scan_and_require_sendable(
        ctx, account, raw, composed.sender, composed.recipients
    )


async def parse_and_encrypt_message(
    ctx: Context, account: ColumnRow, composed: ComposedMessage, copy_recipients: BccCopyRecipients
) -> PreparedMessage:
    """Parse and encrypt a message, and decide where its copy is stored.

    Creates the mailbox SCHEDULED if the message is held. A copy that can't be encrypted is left
    out.
    """
    raw, copy_mailbox, outgoing = composed.raw, composed.copy_mailbox, composed.request
    message = copy = await parse_storable_message(raw)
    if composed.readable_copy is not None:
        raw, copy = composed.readable_copy, await parse_storable_message(composed.readable_copy)
    copy_place, no_copy_reason = None, NO_FOLDER_WARNING
    if copy_mailbox is not None:
        copy_place = _placement_of_copy(ctx, composed, copy_mailbox)
        no_copy_reason = NO_ROOM_WARNING
        try:
            copy = await openpgp_encryption.encrypt_if_required(
                ctx.environment, raw, copy, account, copy_mailbox
            )
        except ServiceUnavailable:  # never store it unencrypted
            copy_place, no_copy_reason = None, UNUSABLE_KEY_WARNING
    sent_mailbox_id = None
    if copy_place is not None and is_held(ctx.environment, outgoing):
        sent_mailbox_id = copy_place.mailbox_id
        copy_place = await placement_in_ensured_scheduled_mailbox(ctx, copy_place)
    dsn_requests = (
        dict.fromkeys(composed.recipients, ALL_REPORTS)
        if outgoing.request_dsn
        else composed.dsn_requests
    )
    envelope = composed.sender, composed.recipients
    return PreparedMessage(
        message,
        copy,
        *envelope,
        copy_place,
        outgoing,
        copy_recipients,
        dsn_requests,
        no_copy_reason,
        sent_mailbox_id,
    )


def _placement_of_copy(
    ctx: Context, composed: ComposedMessage, copy_mailbox: ColumnRow
) -> MessagePlacement:
    """Return the mailbox, flags and envelope that the copy is stored with."""
    outgoing = composed.request
    return MessagePlacement(
        require_user_id(ctx),
        copy_mailbox.id,
        ctx.environment.now(),
        seen=True,
        envelope_from=composed.sender,
        envelope_to=composed.recipients,
        public_metadata=outgoing.public_metadata,
        source=source_id_and_relation_or_none(outgoing.source),
        origin=ctx.origin,
    )


class MessageAndCopyBlobs(NamedTuple):
    """The stored blobs of an outgoing message, and of the sender's copy."""

    message: StoredMessageBlobs
    copy_of_sender: StoredMessageBlobs


async def store_blobs_of_message_and_copy(
    ctx: Context, account: ColumnRow, prepared: PreparedMessage, *, is_retry: bool
) -> MessageAndCopyBlobs:
    """Store the blobs of a message and of its copy, before the transaction that writes their rows.

    Blobs that the tenant has are not stored again. If the transaction raises BlobRowDeleted, since
    one of these was deleted meanwhile, call this once more with `is_retry`, which stores all of
    them.
    """
    message_blobs = copy_blobs = await store_blobs_once_per_tenant(
        ctx.environment, account.tenant_id, prepared.message, store_again=is_retry
    )
    if prepared.copy is not prepared.message:
        copy_blobs = await store_blobs_once_per_tenant(
            ctx.environment, account.tenant_id, prepared.copy, store_again=is_retry
        )
    return MessageAndCopyBlobs(message_blobs, copy_blobs)


async def read_bcc_copy_recipients(
    ctx: Context, account: ColumnRow, envelopes: Sequence[tuple[str, Collection[str]]]
) -> list[BccCopyRecipients]:
    """Read the addresses that BCC rules copy each message to, in the order of the envelopes.

    The transaction that queues a message must lock the streams of its copies too.
    """
    copy_addresses = await recipient_rewrites.find_bcc_addresses_per_envelope(
        ctx.environment, account.id, envelopes
    )
    return [
        BccCopyRecipients(account.tenant_id, account.domain_id, addresses)
        for addresses in copy_addresses
    ]
