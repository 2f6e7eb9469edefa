"""Queue received messages for recipients on this server that could not take them on arrival."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mail.envelope.dsn_parameters import DsnRequest
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.queue.receipts import record_receipt_if_new
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.received_messages import store_blobs_and_run_transaction
from mail.storage.storable_message import StorableMessage
from models.events.journal import PLATFORM
from models.runtime.environment import DatabaseTransaction, Environment


@dataclass(frozen=True, slots=True)
class DeferredRecipient:
    """A recipient whose delivery failed on arrival."""

    address: str
    tenant_id: int
    dsn_request: DsnRequest
    arrival_record: str = field(repr=False)  # JSON text of `mail.inbound.arrival_record`
    domain_id: int | None = None  # whose administrators see the delivery; None: of the tenant

    @property
    def owner(self) -> SubmissionOwner:
        """The owner of the submission that retries the delivery."""
        return SubmissionOwner(None, self.tenant_id, domain_id=self.domain_id)


async def enqueue_deferred_recipients(
    environment: Environment,
    message: StorableMessage,
    digest_and_sender: tuple[str, str],
    recipients: Sequence[DeferredRecipient],
) -> None:
    """Queue a message for recipients on this server, once for each within the receipt period.

    The message is durable when the function returns. `digest_and_sender` are the digest that
    identifies a repeat, and the envelope sender.
    """
    by_owner: dict[SubmissionOwner, dict[str, DeferredRecipient]] = {}
    for recipient in recipients:
        by_owner.setdefault(recipient.owner, {})[recipient.address] = recipient
    for by_address in by_owner.values():
        await _enqueue_new_recipients_of_owner(
            environment, message, digest_and_sender, list(by_address.values())
        )


async def _enqueue_new_recipients_of_owner(
    environment: Environment,
    message: StorableMessage,
    digest_and_sender: tuple[str, str],
    recipients: Sequence[DeferredRecipient],
) -> None:
    """Queue a message for the recipients of one owner that were not queued before."""
    digest, sender = digest_and_sender
    first = recipients[0]

    def enqueue_if_new(transaction: DatabaseTransaction, stored_blobs: StoredMessageBlobs) -> None:
        new = [
            recipient
            for recipient in recipients
            if record_receipt_if_new(transaction, f"{sender}\0later\0{recipient.address}\0{digest}")
        ]
        if new:
            submission = build_submission_and_insert_blobs(
                transaction,
                message,
                stored_blobs,
                sender,
                [recipient.address for recipient in new],
                dsn_requests={recipient.address: recipient.dsn_request for recipient in new},
                arrival_records={recipient.address: recipient.arrival_record for recipient in new},
            )
            enqueue(transaction, first.owner, submission)

    await store_blobs_and_run_transaction(
        environment, first.tenant_id, message, enqueue_if_new, PLATFORM
    )
