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
    request_from_record,
    typed_address,
)
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.dsn_writer import MAX_HEADER_BYTES, ReportedMessage, ReportedRecipient, build_report
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.queue.redirect import record_receipt_if_new
from mail.recipients.recipient_routes import AcceptedRecipient
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


def dsn_action_reported_here(accepted: AcceptedRecipient) -> DsnAction | None:
    """Return what a DSN says of a recipient; None if the server of its single target reports."""
    beyond = _target_count(accepted)
    if not beyond:
        return DsnAction.DELIVERED
    return None if beyond == 1 and not accepted.accounts else DsnAction.EXPANDED


def dsn_request_for_targets(accepted: AcceptedRecipient) -> DsnRequest:
    """Return the DSN request for the targets of a recipient.

    With several targets none reports success: the DSN for the first address is sent here.
    """
    wish = accepted.dsn_request
    if dsn_action_reported_here(accepted) is None:
        return replace(wish, orcpt=wish.orcpt or typed_address(accepted.address))
    return DsnRequest(wish.without_condition(NotifyCondition.SUCCESS).conditions, ret=wish.ret)


def _target_count(accepted: AcceptedRecipient) -> int:
    """Return the number of targets a recipient is forwarded to."""
    return sum(len(each.target_addresses) + len(each.endpoints) for each in accepted.forwards)


async def enqueue_wanted_success_dsn(
    environment: Environment,
    incoming: "IncomingMessage",
    accepted_recipients: Sequence[AcceptedRecipient],
    results: Sequence[object],
) -> None:
    """Send a DSN for the delivered recipients that request it. Errors don't affect the delivery."""
    told = [
        ReportedRecipient(each.address, action, _DELIVERED_RESULT, each.dsn_request.orcpt)
        for each, outcome in zip(accepted_recipients, results, strict=True)
        if each.dsn_request.conditions is not None
        and each.dsn_request.is_report_wanted(NotifyCondition.SUCCESS)
        and not isinstance(outcome, BaseException)
        and not (outcome is None and each.accounts)  # it is in quarantine
        and (action := dsn_action_reported_here(each)) is not None
    ]
    if not told or not incoming.envelope_sender or _is_spam_or_unverified(environment, incoming):
        return
    try:
        await _enqueue_dsn(environment, incoming, accepted_recipients[0], told)
    except Exception:  # the message is stored; the client must not send it again
        log.exception("a report was not sent", extra={"id": incoming.trace.queue_id})


_DELIVERED_RESULT = DeliveryResult(
    DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", local_action=DsnAction.DELIVERED
)


def _is_spam_or_unverified(environment: Environment, incoming: "IncomingMessage") -> bool:
    """Return True if the message is spam or its sender was checked and is not verified."""
    found = _sender_facts(environment, incoming)
    scan = incoming.message.scan or ScanResult()
    score = max(found.score.value, verdict.score_from_scan(scan, verdict.SpamThresholds()))
    return score >= verdict.FLAGGED_SCORE or _is_sender_forged_or_unverified(incoming, found)


def _sender_facts(environment: Environment, incoming: "IncomingMessage") -> verdict.SpamFacts:
    """Return the facts about the sender and the spam score."""
    letter, believed = incoming.message, environment.options.spam_headers
    opinions = letter.facts.spam_headers if incoming.from_trusted_server else ()
    return verdict.spam_facts(
        opinions, believed, incoming.envelope_sender, letter.verification, letter.scan
    )


def is_sender_forged_or_unverified(environment: Environment, incoming: "IncomingMessage") -> bool:
    """Return True if the sender was checked and is not verified."""
    return _is_sender_forged_or_unverified(incoming, _sender_facts(environment, incoming))


def _is_sender_forged_or_unverified(
    incoming: "IncomingMessage", sender_facts: verdict.SpamFacts
) -> bool:
    """Return True if the sender is forged, or was checked and is not verified."""
    if sender_facts.is_forged:
        return True
    sure = sender_facts.spf_passed or (incoming.message.verification or {}).get("dmarc") == "pass"
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
    tenants += [onward.tenant_id for onward in first_accepted.forwards]
    tenant = next(iter(tenants), first_accepted.domain_id or 0)
    about = ReportedMessage(
        incoming.envelope_sender,
        environment.now(),
        incoming.trace.queue_id,
        first_accepted.dsn_request,
    )
    report = await _build_dsn(environment, incoming, (about, reported_recipients), tenant)
    await store_blobs_and_run_transaction(
        environment,
        tenant,
        report.message,
        lambda turn, kept: enqueue_dsn_once(turn, report, kept),
        PLATFORM,
    )


@dataclass(frozen=True, slots=True)
class SuccessDsn:
    """A DSN that can be queued."""

    message: StorableMessage
    recipient: str
    tenant_id: int
    repeat_key: str  # identifies a repeated delivery


async def _build_dsn(
    environment: Environment,
    incoming: "IncomingMessage",
    message_and_recipients: tuple[ReportedMessage, Sequence[ReportedRecipient]],
    tenant_id: int,
) -> SuccessDsn:
    """Build the DSN and the key that identifies a repeat."""
    about, told = message_and_recipients
    head = await read_beginning(
        incoming.raw_message, min(incoming.message.facts.structure.body_start, MAX_HEADER_BYTES)
    )
    letter = await parse_storable_message(build_report(environment, about, told, head))
    named = ",".join(each.address for each in told)
    known = f"{incoming.envelope_sender}\0told\0{named}\0{incoming.content_digest}"
    return SuccessDsn(letter, incoming.envelope_sender, tenant_id, known)


def enqueue_dsn_once(
    transaction: DatabaseTransaction, dsn: SuccessDsn, stored_blobs: StoredMessageBlobs
) -> None:
    """Enqueue a DSN once, in a transaction that locks PLATFORM. Its bytes must be stored."""
    if record_receipt_if_new(transaction, dsn.repeat_key):
        given = build_submission_and_insert_blobs(
            transaction, dsn.message, stored_blobs, "", [dsn.recipient]
        )
        enqueue(transaction, SubmissionOwner(None, dsn.tenant_id), given)


async def success_dsn_of_released(
    environment: Environment,
    incoming: "IncomingMessage",
    item_row: ColumnRow,
    recipient: LocalRecipient,
) -> SuccessDsn | None:
    """Return the DSN for a released message, None if its sender did not request one.

    The spam verdict is ignored, since the release has decided. The sender was verified when the
    message was quarantined; otherwise the stored request has no SUCCESS.
    """
    wish = request_from_record(item_row.wish)
    if (
        wish.conditions is None
        or NotifyCondition.SUCCESS not in wish.conditions
        or not incoming.envelope_sender
    ):
        return None
    told = [
        ReportedRecipient(
            item_row.wish["address"], DsnAction.DELIVERED, _DELIVERED_RESULT, wish.orcpt
        )
    ]
    about = ReportedMessage(incoming.envelope_sender, item_row.created_at, item_row.queue_id, wish)
    return await _build_dsn(environment, incoming, (about, told), recipient.tenant_id)
