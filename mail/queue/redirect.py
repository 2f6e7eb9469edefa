"""Redirect received messages: one queued message for each address or user that forwards."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import case, select, update
from sqlmodel import col

from mail import mime
from mail.addresses import srs
from mail.authentication import make_arc_fields_or_empty
from mail.limits import user_limits
from mail.mime.header_encoding import with_ascii_domain
from mail.queue import receipts
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.recipients.recipient_routes import (
    MailLoop,
    OutgoingForward,
    require_below_address_forward_limit,
)
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.header_prepend import prepend_header_fields_to_message, read_beginning
from mail.storage.received_messages import store_blobs_and_run_transaction
from mail.storage.storable_message import StorableMessage
from models.addresses.tables import Address
from models.errors import NotFound
from models.events.journal import PLATFORM
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment

MAX_SEARCHED_HEADER_BYTES = 1 << 20  # of a large message, for the loop check
MAX_HOPS = 30  # Received fields; with this number a message is in a loop
FORWARD_COUNT_PERIOD = timedelta(days=1)
MAX_RECORDED_TARGETS = 250  # of a stored message


@dataclass(frozen=True, slots=True)
class PreparedRedirect:
    """A message that is ready to be redirected, with the digest and sender of the original."""

    message: StorableMessage
    original_digest: str  # of the received message
    sender: str  # envelope sender of the received message
    forward: OutgoingForward


async def require_no_mail_loop(
    source: bytes | Path, message: StorableMessage, forwarding_address: str | None
) -> None:
    """Raise MailLoop if the message has passed this address, or `MAX_HOPS` servers."""
    header_size = message.facts.structure.body_start
    header = await read_beginning(
        source,
        header_size if isinstance(source, bytes) else min(header_size, MAX_SEARCHED_HEADER_BYTES),
    )
    fields = mime.decoded_fields(header, message.facts.structure)
    field_names = [field.name.casefold() for field in fields]
    was_here = forwarding_address is not None and any(
        name == "delivered-to"
        and field.value.strip().casefold() == with_ascii_domain(forwarding_address).casefold()
        for name, field in zip(field_names, fields, strict=True)
    )
    if was_here or field_names.count("received") >= MAX_HOPS:
        raise MailLoop("Mail loop detected.")


async def enqueue_redirect(  # noqa: PLR0913, PLR0917 - envelope and message
    environment: Environment,
    source: bytes | Path,
    digest_and_sender: tuple[str, str],
    forward: OutgoingForward,
    authentication_results: str | None = None,
    message: StorableMessage | None = None,
) -> None:
    """Build a redirect with Delivered-To and an ARC seal, and queue it once.

    The message is durable when the function returns. Raises MailLoop, RateLimited or NotFound.
    """
    with ExitStack() as files:
        prepared = await build_redirect_with_delivered_to_and_arc(
            environment, source, digest_and_sender, forward, files, authentication_results, message
        )

        def write(transaction: DatabaseTransaction, stored_blobs: StoredMessageBlobs) -> None:
            enqueue_prepared_redirect_once(transaction, prepared, stored_blobs)

        user_streams = [] if forward.user_id is None else [forward.user_id]
        await store_blobs_and_run_transaction(
            environment, forward.tenant_id, prepared.message, write, PLATFORM, *user_streams
        )


async def build_redirect_with_delivered_to_and_arc(  # noqa: PLR0913, PLR0917 - envelope and message
    environment: Environment,
    source: bytes | Path,
    digest_and_sender: tuple[str, str],
    forward: OutgoingForward,
    file_stack: ExitStack,
    authentication_results: str | None = None,
    message: StorableMessage | None = None,
) -> PreparedRedirect:
    """Add Delivered-To and the ARC seal to a received message. Raises MailLoop.

    `digest_and_sender` are the digest that identifies a repeat within a day, and the envelope
    sender. `authentication_results` go into the ARC seal. `message` is the parsed source, if the
    caller has it. `file_stack` closes the temporary files.
    """
    message = message or await received_messages.parse_storable_message(source)
    arc_fields = b""
    if forward.is_backup_mx:  # the message is not changed; its Received field is the trace
        await require_no_mail_loop(source, message, None)
        return PreparedRedirect(message, *digest_and_sender, forward)
    if not forward.is_returned_bounce:
        await require_no_mail_loop(source, message, forward.address)
        arc_fields = await make_arc_fields_or_empty(
            environment, source, forward.address.rpartition("@")[2], authentication_results
        )
    new_fields = f"Delivered-To: {with_ascii_domain(forward.address)}\r\n".encode() + arc_fields
    return PreparedRedirect(
        await prepend_header_fields_to_message(source, message, new_fields, file_stack),
        *digest_and_sender,
        forward,
    )


def enqueue_prepared_redirect_once(
    transaction: DatabaseTransaction, redirect: PreparedRedirect, stored_blobs: StoredMessageBlobs
) -> None:
    """Queue a prepared redirect, once within the receipt period.

    The streams of the platform and of the user must be locked. Raises RateLimited if a forwarding
    limit is reached and NotFound if the address or the user is deleted, before any change.
    """
    forward = redirect.forward
    targets = [*forward.target_addresses, *(via.public_url for via in forward.endpoints)]
    owner_key = forward.address_id if forward.user_id is None else f"user {forward.user_id}"
    receipt_text = f"{redirect.sender}\0onward\0{owner_key}\0{','.join(targets)}"
    receipt_text = f"{receipt_text}\0{redirect.original_digest}"
    if receipts.is_receipt_known(transaction, receipt_text):
        return
    _count_forwards_within_limits(transaction, forward, len(targets))  # raises before any change
    receipts.record_receipt(transaction, receipt_text)
    sender = _original_or_srs_sender(transaction.environment, redirect)
    dsn_requests = dict.fromkeys(
        [*forward.target_addresses, *(via.recipient for via in forward.endpoints)],
        forward.dsn_request,
    )
    submission = build_submission_and_insert_blobs(
        transaction,
        redirect.message,
        stored_blobs,
        sender,
        forward.target_addresses,
        dsn_requests=dsn_requests,
    )
    owner = SubmissionOwner(None, forward.tenant_id, domain_id=forward.traced_domain_id)
    if forward.target_addresses:
        enqueue(transaction, owner, submission)
    if forward.endpoints:  # a configured relay accepts the original sender
        endpoint_submission = replace(submission, sender=redirect.sender, recipients=())
        enqueue(transaction, owner, replace(endpoint_submission, endpoints=forward.endpoints))
    if forward.stored_message_id is not None:
        _record_targets_on_message(transaction, forward, targets)


def _record_targets_on_message(
    transaction: DatabaseTransaction, forward: OutgoingForward, targets: Sequence[str]
) -> None:
    """Add the targets to `forwarded_to` of the stored message, without duplicates.

    At most MAX_RECORDED_TARGETS are recorded, the first ones.
    """
    conditions = (
        col(Message.id) == forward.stored_message_id,
        col(Message.user_id) == forward.user_id,
    )
    row = transaction.connection.execute(
        select(col(Message.forwarded_to)).where(*conditions)
    ).first()
    if row is None:  # the message was deleted
        return
    target_by_key = {
        text.casefold(): text for text in reversed([*(row.forwarded_to or ()), *targets])
    }
    statement = (
        update(Message)
        .where(*conditions)
        .values(forwarded_to=list(reversed(target_by_key.values()))[:MAX_RECORDED_TARGETS])
    )
    transaction.connection.execute(statement)


def _original_or_srs_sender(environment: Environment, redirect: PreparedRedirect) -> str:
    """The envelope sender of a redirect: rewritten with SRS unless it must be kept."""
    forward = redirect.forward
    if forward.is_returned_bounce or forward.is_backup_mx:
        return redirect.sender
    return srs.rewrite_sender(environment, redirect.sender, forward.address.rpartition("@")[2])


def _count_forwards_within_limits(
    transaction: DatabaseTransaction, forward: OutgoingForward, target_count: int
) -> None:
    """Count the targets against the limits of the user and the address.

    Raises RateLimited if a limit is reached and NotFound if the address is deleted.
    """
    if forward.user_id is not None:
        user_limits.count_forwards_within_daily_limit(transaction, forward.user_id, target_count)
    if forward.address_id is None:
        return
    now = transaction.environment.now()
    is_period_running = col(Address.forwarded_until) > now
    statement = update(Address).where(col(Address.id) == forward.address_id)
    rows = transaction.connection.execute(
        select(
            col(Address.forwards_per_day), col(Address.forwarded), col(Address.forwarded_until)
        ).where(col(Address.id) == forward.address_id)
    ).all()
    if not rows:
        raise NotFound(forward.address, path=["address"])
    require_below_address_forward_limit(transaction.environment, rows[0])
    transaction.connection.execute(
        statement.values(
            forwarded=case(
                (is_period_running, Address.forwarded + target_count), else_=target_count
            ),
            forwarded_until=case(
                (is_period_running, col(Address.forwarded_until)), else_=now + FORWARD_COUNT_PERIOD
            ),
        )
    )
