"""Delivery of queue entries to recipients on this server, without SMTP."""

from collections.abc import Mapping
from dataclasses import replace

from mail.compose.message_builder import without_bcc
from mail.delivery import pipeline, success_dsn
from mail.delivery.script_rejection import RejectedByScript
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, JobRecipient
from mail.envelope.smtp_replies import (
    MAIL_LOOP_REPLY,
    MAILBOX_FULL_REPLY,
    RECIPIENT_RATE_REPLY,
    TRY_LATER_REPLY,
    USER_UNKNOWN_REPLY,
)
from mail.inbound.incoming_message import IncomingMessage
from mail.queue import dsn_requests
from mail.recipients import recipient_routes
from mail.recipients.recipient_routes import MailLoop
from mail.storage.message_trace import TraceRecorder
from mail.storage.received_messages import parse_storable_message
from models.errors import NotFound, OverQuota, RateLimited, ServiceUnavailable
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment

REPLIES_BY_ERROR: dict[type[Exception], str] = {  # the first that matches
    NotFound: USER_UNKNOWN_REPLY,
    OverQuota: MAILBOX_FULL_REPLY,
    RateLimited: RECIPIENT_RATE_REPLY,
    ServiceUnavailable: TRY_LATER_REPLY,
    MailLoop: MAIL_LOOP_REPLY,
}


async def deliver_to_local_recipients(
    environment: Environment, job: DeliveryJob, raw_message: bytes
) -> dict[int, DeliveryResult]:
    """Deliver a message of the queue to its local recipients; return results by delivery ID.

    Recipients of other servers have no result; pass the job to `job_without_delivered` for them. A
    repeated delivery is recognized and stores nothing.
    """
    source = without_bcc(raw_message)
    mail = IncomingMessage(
        source,
        replace(await parse_storable_message(source), is_generated=job.originates_here),
        job.sender,
        trace=TraceRecorder(job.queue_id),
        applies_bcc_rules=not job.is_copy,
        submission_id=job.submission_id,
    )
    found = {
        to.delivery_id: await _deliver_to_one(environment, mail, job, to) for to in job.recipients
    }
    return {key: result for key, result in found.items() if result is not None}


def job_without_delivered(
    job: DeliveryJob, results_by_delivery: Mapping[int, DeliveryResult]
) -> DeliveryJob:
    """Return the job with only the recipients that have no result."""
    return replace(
        job, recipients=[to for to in job.recipients if to.delivery_id not in results_by_delivery]
    )


async def _deliver_to_one(
    environment: Environment,
    incoming: IncomingMessage,
    job: DeliveryJob,
    job_recipient: JobRecipient,
) -> DeliveryResult | None:
    """Deliver to one recipient. Returns None if the message must go to another server."""
    host = environment.options.hostname
    outcome: object
    try:
        taken = await recipient_routes.accept_recipient(
            environment, job_recipient.address, incoming.envelope_sender
        )
        taken = replace(
            taken, dsn_request=dsn_requests.forwarded_request(environment, job, job_recipient)
        )
        if taken.is_relayed_unchanged:
            return None
        (outcome,) = await pipeline.deliver(environment, incoming, [taken])
    except tuple(REPLIES_BY_ERROR) as refusal:
        outcome = refusal
    if isinstance(outcome, RejectedByScript):
        return _refusal_result(outcome.smtp_reply, host)
    for kind, reply in REPLIES_BY_ERROR.items():
        if isinstance(outcome, kind):
            return _refusal_result(reply, host)
    if isinstance(outcome, BaseException):
        raise outcome
    done = DeliveryResult(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
    how = success_dsn.dsn_action_reported_here(taken)
    return replace(done, is_reported_remotely=how is None, local_action=how)


def _refusal_result(smtp_reply: str, host: str) -> DeliveryResult:
    """Return the result of a recipient whom the listeners would refuse with this reply."""
    code, _, text = smtp_reply.partition(" ")
    return DeliveryResult.from_refusal(int(code), text, host)
