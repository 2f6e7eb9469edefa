"""Send success DSNs to remote senders that request them (NOTIFY=SUCCESS, RFC 3461).

If SPF and DMARC are checked and don't verify the sender, no DSN is sent, since sender addresses are
easily forged. For a message that is forwarded to one target, the next server sends the DSN, or our
queue if that server does not support DSN.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.envelope.delivery_jobs import DeliveryResult, DsnAction
from mail.envelope.dsn_parameters import (
    DsnRequest,
    NotifyCondition,
    dsn_request_from_record_or_default,
    typed_address,
)
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.dsn_writer import MAX_HEADER_BYTES, ReportedMessage, ReportedRecipient, build_report
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.queue.receipts import record_receipt_if_new
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.recipients.traced_domains import traced_domain_id_or_none
from mail.spam import verdict
from mail.spam.scan_result import ScanResult
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.header_prepend import read_beginning
from mail.storage.received_messages import parse_storable_message, store_blobs_and_run_transaction
from mail.storage.storable_message import StorableMessage
from models.events.journal import PLATFORM
from models.queue.tables import DeliveryState
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)


def dsn_action_reported_here_or_none(accepted: AcceptedRecipient) -> DsnAction | None:
    """Return what a DSN says of a recipient; None if the server of its single target reports."""
    beyond = _target_count(accepted)
    if not beyond:
        return DsnAction.DELIVERED
    return None if beyond == 1 and not accepted.accounts else DsnAction.EXPANDED


def dsn_request_for_targets(accepted: AcceptedRecipient) -> DsnRequest:
    """Return the DSN request for the targets of a recipient.

    With several targets none reports success: the DSN for the first address is sent here.
    """
    dsn_request = accepted.dsn_request
    if dsn_action_reported_here_or_none(accepted) is None:
        return replace(dsn_request, orcpt=dsn_request.orcpt or typed_address(accepted.address))
    return DsnRequest(
        dsn_request.without_condition(NotifyCondition.SUCCESS).conditions, ret=dsn_request.ret
    )


def _target_count(accepted: AcceptedRecipient) -> int:
    """Return the number of targets a recipient is forwarded to."""
    return sum(
        len(forward.target_addresses) + len(forward.endpoints) for forward in accepted.forwards
    )


async def enqueue_wanted_success_dsn_or_log_error(
    environment: Environment,
    incoming: "IncomingMessage",
    accepted_recipients: Sequence[AcceptedRecipient],
    results: Sequence[object],
) -> None:
    """Send a DSN for the delivered recipients that request it. Errors don't affect the delivery."""
    reported_recipients = [
        ReportedRecipient(recipient.address, action, _DELIVERED_RESULT, recipient.dsn_request.orcpt)
        for recipient, outcome in zip(accepted_recipients, results, strict=True)
        if recipient.dsn_request.conditions is not None
        and recipient.dsn_request.is_report_wanted(NotifyCondition.SUCCESS)
        and not isinstance(outcome, BaseException)
        and not (outcome is None and recipient.accounts)  # it is in quarantine
        and (action := dsn_action_reported_here_or_none(recipient)) is not None
    ]
    if (
        not reported_recipients
        or not incoming.envelope_sender
        or is_dsn_backscatter(environment, incoming)
    ):
        return
    try:
        await _enqueue_dsn(environment, incoming, accepted_recipients[0], reported_recipients)
    except Exception:  # the message is stored; the client must not send it again
        log.exception(
            "Delivery status notification not sent", extra={"id": incoming.trace.queue_id}
        )


_DELIVERED_RESULT = DeliveryResult(
    DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", local_action=DsnAction.DELIVERED
)


def is_dsn_backscatter(environment: Environment, incoming: "IncomingMessage") -> bool:
    """Return True if a DSN could reach somebody who did not send the message.

    That holds for spam, and if the sender was checked and is not verified.
    """
    return is_spam_or_forged(environment, incoming) or is_sender_forged_or_unverified(
        environment, incoming
    )


def is_spam_or_forged(environment: Environment, incoming: "IncomingMessage") -> bool:
    """Return True if the message is spam, or DMARC failed."""
    facts, scan = _sender_facts(environment, incoming), incoming.message.scan or ScanResult()
    score = max(facts.score.value, verdict.score_from_scan(scan, verdict.SpamThresholds()))
    return facts.is_forged or score >= verdict.FLAGGED_SCORE


def _sender_facts(environment: Environment, incoming: "IncomingMessage") -> verdict.SpamFacts:
    """Return the facts about the sender and the spam score."""
    message, believed = incoming.message, environment.options.spam_headers
    opinions = message.facts.spam_headers if incoming.from_trusted_server else ()
    return verdict.spam_facts(
        opinions, believed, incoming.envelope_sender, message.authentication, message.scan
    )


def is_sender_forged_or_unverified(environment: Environment, incoming: "IncomingMessage") -> bool:
    """Return True if the sender is forged, or was checked and is not verified."""
    facts = _sender_facts(environment, incoming)
    if facts.is_forged:
        return True
    sure = facts.spf_passed or (incoming.message.authentication or {}).get("dmarc") == "pass"
    return (
        not sure
        and not incoming.from_trusted_server
        and incoming.authentication_results is not None
    )


async def _enqueue_dsn(
    environment: Environment,
    incoming: "IncomingMessage",
    first_accepted: AcceptedRecipient,
    reported_recipients: Sequence[ReportedRecipient],
) -> None:
    """Build the DSN and enqueue it under the tenant of the first recipient."""
    tenants = [person.recipient.tenant_id for person in first_accepted.accounts]
    tenants += [forward.tenant_id for forward in first_accepted.forwards]
    tenant = next(iter(tenants), first_accepted.domain_id or 0)
    reported_message = ReportedMessage(
        incoming.envelope_sender,
        environment.now(),
        incoming.trace.queue_id,
        first_accepted.dsn_request,
    )
    report = await _build_dsn(
        environment,
        incoming,
        (reported_message, reported_recipients),
        (tenant, traced_domain_id_or_none(first_accepted)),
    )
    await store_blobs_and_run_transaction(
        environment,
        tenant,
        report.message,
        lambda turn, stored_blobs: enqueue_dsn_once(turn, report, stored_blobs),
        PLATFORM,
    )


@dataclass(frozen=True, slots=True)
class SuccessDsn:
    """A DSN that can be queued."""

    message: StorableMessage
    recipient: str
    tenant_id: int
    domain_id: int | None  # whose administrators see the DSN
    repeat_key: str  # identifies a repeated delivery


async def _build_dsn(
    environment: Environment,
    incoming: "IncomingMessage",
    message_and_recipients: tuple[ReportedMessage, Sequence[ReportedRecipient]],
    tenant_and_domain: tuple[int, int | None],
) -> SuccessDsn:
    """Build the DSN and the key that identifies a repeat."""
    reported_message, reported_recipients = message_and_recipients
    head = await read_beginning(
        incoming.raw_message, min(incoming.message.facts.structure.body_start, MAX_HEADER_BYTES)
    )
    dsn_message = await parse_storable_message(
        build_report(environment, reported_message, reported_recipients, head)
    )
    address_text = ",".join(
        reported_recipient.address for reported_recipient in reported_recipients
    )
    digest_text = f"{incoming.envelope_sender}\0told\0{address_text}\0{incoming.content_digest}"
    return SuccessDsn(dsn_message, incoming.envelope_sender, *tenant_and_domain, digest_text)


def enqueue_dsn_once(
    transaction: DatabaseTransaction, dsn: SuccessDsn, stored_blobs: StoredMessageBlobs
) -> None:
    """Enqueue a DSN once, in a transaction that locks PLATFORM. Its bytes must be stored."""
    if record_receipt_if_new(transaction, dsn.repeat_key):
        submission = build_submission_and_insert_blobs(
            transaction, dsn.message, stored_blobs, "", [dsn.recipient]
        )
        owner = SubmissionOwner(None, dsn.tenant_id, domain_id=dsn.domain_id)
        enqueue(transaction, owner, submission)


async def success_dsn_of_released_if_requested(
    environment: Environment,
    incoming: "IncomingMessage",
    item_row: ColumnRow,
    recipient: LocalRecipient,
) -> SuccessDsn | None:
    """Return the DSN for a released message, None if its sender did not request one.

    The spam verdict is ignored, since the release has decided. The sender was verified when the
    message was quarantined; otherwise the stored request has no SUCCESS.
    """
    dsn_request = dsn_request_from_record_or_default(item_row.dsn_request)
    if (
        dsn_request.conditions is None
        or NotifyCondition.SUCCESS not in dsn_request.conditions
        or not incoming.envelope_sender
    ):
        return None
    reported_recipients = [
        ReportedRecipient(
            item_row.dsn_request["address"],
            DsnAction.DELIVERED,
            _DELIVERED_RESULT,
            dsn_request.orcpt,
        )
    ]
    reported_message = ReportedMessage(
        incoming.envelope_sender, item_row.created_at, item_row.queue_id, dsn_request
    )
    return await _build_dsn(
        environment,
        incoming,
        (reported_message, reported_recipients),
        (recipient.tenant_id, recipient.domain_id),
    )
