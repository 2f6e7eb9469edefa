"""Record the delivery trace of a message that passes mail/delivery/pipeline.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mail.addresses.address_syntax import normalized_domain
from mail.delivery.account_forwards import ForwardOutcome
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients.batch_resolution import load_domain_ids_by_name
from mail.recipients.recipient_routes import (
    AcceptedRecipient,
    AcceptedResource,
    AutoreplyAddress,
    OutgoingForward,
)
from mail.recipients.traced_domains import traced_domain_id_or_none
from mail.spam.verdict import SpamVerdict
from mail.storage.message_insert import InsertedMessage
from mail.storage.message_trace import TraceRecorder, new_queue_id
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.errors import RequestError
from models.logs.entries import LogComponent
from models.messages.message_trace import DeliveryTraceEventKind
from models.runtime.environment import Environment

if TYPE_CHECKING:
    from mail.delivery.failed_deliveries import FailedDelivery
    from mail.delivery.quarantine import QuarantineReason


# Traces are shown to users and filtered by text: a label does not change with its class name.
_ERROR_LABELS = {
    "DamagedContent": "Damaged",
    "InvalidInput": "Invalid",
    "MailLoop": "Loop",
    "MultipleErrors": "Several",
    "RejectedByDmarc": "Forged",
    "RejectedByScript": "Rejected",
    "RequestError": "Refused",
    "RewrittenToExternal": "Outside",
    "ResourceMailRefused": "NoInvitation",
    "ScriptError": "NotCompiled",
    "ServiceUnavailable": "Unavailable",
    "SpamForwardRefused": "Held",
    "SpamRefused": "Unwanted",
    "StaleObject": "Stale",
    "UserLimitExceeded": "TooMany",
    "VirusRefused": "Infected",
}


def record_sender_and_accepted(
    environment: Environment,
    trace: TraceRecorder,
    envelope_sender: str,
    accepted_recipients: Sequence[AcceptedRecipient],
) -> None:
    """Record the envelope sender, the queue ID and the accepted recipients."""
    trace.sender = envelope_sender
    trace.queue_id = trace.queue_id or next(
        (e.queue_id for e in accepted_recipients if e.queue_id), new_queue_id(environment)
    )
    for recipient in accepted_recipients:
        trace.record_step(
            environment,
            DeliveryTraceEventKind.ACCEPTED,
            _address_and_domain(recipient),
            f"from <{envelope_sender}>",
        )


async def record_rejected_recipients(
    environment: Environment, trace: TraceRecorder, accepted_recipients: Sequence[AcceptedRecipient]
) -> None:
    """Record the refused recipients with the SMTP reply. No statement if there are none."""
    rejected_recipients = [
        rejected_recipient
        for accepted_recipient in accepted_recipients
        for rejected_recipient in accepted_recipient.rejected_recipients
    ]
    if not rejected_recipients or not environment.options.message_trace_retention:
        return
    names = {
        recipient.address: make_storable(normalized_domain(recipient.address.rpartition("@")[2]))
        for recipient in rejected_recipients
    }
    domain_ids_by_name = await load_domain_ids_by_name(environment, set(names.values()))
    for recipient in rejected_recipients:
        domain_id = next(iter(domain_ids_by_name.get(names[recipient.address], ())), None)
        trace.record_step(
            environment,
            DeliveryTraceEventKind.REJECTED,
            (recipient.address, domain_id),
            recipient.smtp_reply,
        )


def record_verdict(
    environment: Environment, trace: TraceRecorder, recipient: LocalRecipient, verdict: SpamVerdict
) -> None:
    """Record the spam verdict of a recipient."""
    text = f"{'spam' if verdict.is_spam else 'no spam'}, score {verdict.score}, by {verdict.reason}"
    trace.record_step(
        environment,
        DeliveryTraceEventKind.CLASSIFIED,
        (recipient.address, recipient.domain_id),
        text,
        component=LogComponent.SPAM,
    )


def record_quarantined(
    environment: Environment,
    trace: TraceRecorder,
    recipient: LocalRecipient,
    reason: "QuarantineReason",
) -> None:
    """Record that the message was quarantined, and why."""
    text = f"{reason.virus}, a virus" if reason.virus else f"spam, {reason.score:g} points"
    trace.record_step(
        environment,
        DeliveryTraceEventKind.QUARANTINED,
        (recipient.address, recipient.domain_id),
        text,
        component=LogComponent.SPAM,
    )


def record_autoreply(
    environment: Environment,
    trace: TraceRecorder,
    recipient: LocalRecipient | AutoreplyAddress,
    autoreply_outcome: str | None,
) -> None:
    """Record the outcome of the automatic reply. None records nothing."""
    if autoreply_outcome is not None:
        event = (
            DeliveryTraceEventKind.AUTOREPLY_SENT
            if autoreply_outcome == "answered"
            else DeliveryTraceEventKind.AUTOREPLY_NOT_SENT
        )
        trace.record_step(
            environment, event, (recipient.address, recipient.domain_id), autoreply_outcome
        )


def record_stored_and_forwarded(
    environment: Environment,
    trace: TraceRecorder,
    recipient: LocalRecipient,
    inserted: InsertedMessage | None,
    forward_outcome: ForwardOutcome | None,
) -> None:
    """Record where the message was stored, and whether it was forwarded."""
    _record_stored_or_not_stored(environment, trace, recipient, inserted)
    if forward_outcome is not None:
        is_sent = forward_outcome is ForwardOutcome.SENT
        recipient_and_domain = recipient.address, recipient.domain_id
        event = (
            DeliveryTraceEventKind.FORWARDED if is_sent else DeliveryTraceEventKind.NOT_FORWARDED
        )
        trace.record_step(environment, event, recipient_and_domain, forward_outcome.lower())


def _record_stored_or_not_stored(
    environment: Environment,
    trace: TraceRecorder,
    recipient: LocalRecipient,
    inserted: InsertedMessage | None,
) -> None:
    """Record the UID of the stored message, or that rules did not store it."""
    recipient_and_domain = recipient.address, recipient.domain_id
    if inserted is None:
        trace.record_step(
            environment,
            DeliveryTraceEventKind.NOT_STORED,
            recipient_and_domain,
            "by a rule",
            component=LogComponent.STORE,
        )
    else:
        where = f"uid {inserted.uid}{_rewrite_text_or_empty(recipient)}"
        trace.record_step(
            environment,
            DeliveryTraceEventKind.STORED,
            recipient_and_domain,
            where,
            component=LogComponent.STORE,
            stored_message_id=inserted.message_id,
        )


def new_trace_of_released(
    environment: Environment,
    queue_id: str,
    recipient: LocalRecipient,
    inserted_and_releaser: tuple[InsertedMessage | None, str],
) -> TraceRecorder:
    """Return a new trace of a message that was released from quarantine.

    The pair is the inserted message, None if rules did not store it, and the name of the releaser.
    """
    inserted, releaser = inserted_and_releaser
    trace = TraceRecorder(queue_id)
    trace.record_step(
        environment,
        DeliveryTraceEventKind.RELEASED,
        (recipient.address, recipient.domain_id),
        f"by {releaser}",
        component=LogComponent.SPAM,
    )
    _record_stored_or_not_stored(environment, trace, recipient, inserted)
    return trace


def record_invitation_answer(
    environment: Environment, trace: TraceRecorder, resource: AcceptedResource, answer: str
) -> None:
    """Record how a resource answered a message with an invitation.

    The event is AUTOREPLY_SENT if `answer` begins with ACCEPTED or DECLINED. Otherwise, as for a
    cancellation, it is AUTOREPLY_NOT_SENT.
    """
    recipient_and_domain = resource.given_address, resource.domain_id
    event = (
        DeliveryTraceEventKind.AUTOREPLY_SENT
        if answer.startswith(("ACCEPTED", "DECLINED"))
        else DeliveryTraceEventKind.AUTOREPLY_NOT_SENT
    )
    trace.record_step(environment, event, recipient_and_domain, answer)


def record_forward(
    environment: Environment, trace: TraceRecorder, forward: OutgoingForward
) -> None:
    """Record that the message was queued for the targets of an address."""
    targets = [*forward.target_addresses, *(via.public_url for via in forward.endpoints)]
    trace.record_step(
        environment,
        DeliveryTraceEventKind.FORWARDED,
        (forward.address, forward.traced_domain_id),
        "to " + ", ".join(targets),
    )


def record_spam_not_forwarded(
    environment: Environment, trace: TraceRecorder, forward: OutgoingForward
) -> None:
    """Record that the message was not forwarded to the targets of an address."""
    trace.record_step(
        environment,
        DeliveryTraceEventKind.NOT_FORWARDED,
        (forward.address, forward.traced_domain_id),
        ForwardOutcome.SPAM.lower(),
    )


def record_refused_targets(
    environment: Environment,
    trace: TraceRecorder,
    accepted: AcceptedRecipient,
    failures: "Sequence[FailedDelivery]",
    forward_errors: Sequence[BaseException],
) -> None:
    """Record the targets that refuse a message for good, while another target has it."""
    for failure in failures:
        if isinstance(failure.error, RequestError) and not failure.is_retried:
            trace.record_step(
                environment,
                DeliveryTraceEventKind.REFUSED,
                (failure.address, failure.traced_domain_id),
                _refusal_text(failure.error),
            )
    for error in forward_errors:
        if isinstance(error, RequestError):
            trace.record_step(
                environment,
                DeliveryTraceEventKind.NOT_FORWARDED,
                _address_and_domain(accepted),
                _refusal_text(error),
            )


def record_refused_and_schedule_write(
    environment: Environment,
    trace: TraceRecorder,
    message: StorableMessage,
    accepted_recipients: Sequence[AcceptedRecipient],
    results: Sequence[object],
) -> None:
    """Record refused and dropped recipients and schedule the write of the trace."""
    for recipient, outcome in zip(accepted_recipients, results, strict=True):
        if isinstance(outcome, RequestError):
            trace.record_step(
                environment,
                DeliveryTraceEventKind.REFUSED,
                _address_and_domain(recipient),
                _refusal_text(outcome),
            )
        elif isinstance(outcome, BaseException):
            trace.record_step(
                environment,
                DeliveryTraceEventKind.REFUSED,
                _address_and_domain(recipient),
                "temporary error: the sending server tries again",
            )
        elif not (recipient.accounts or recipient.forwards or recipient.resource):
            trace.record_step(
                environment, DeliveryTraceEventKind.DISCARDED, _address_and_domain(recipient)
            )
    trace.schedule_write(environment, message)


def _refusal_text(error: RequestError) -> str:
    """Return the label and the text of an error in delivery traces."""
    name = type(error).__name__
    return f"{_ERROR_LABELS.get(name, name)}: {error.message}"


def _address_and_domain(accepted: AcceptedRecipient) -> tuple[str, int | None]:
    """Return the address and the ID of its domain."""
    return accepted.address, traced_domain_id_or_none(accepted)


def _rewrite_text_or_empty(recipient: LocalRecipient) -> str:
    """Return the text about a rewritten recipient, "" if it was not rewritten."""
    return f", as {recipient.rewritten_address}" if recipient.rewritten_address else ""
