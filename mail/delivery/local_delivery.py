"""Delivery of queue entries to recipients on this server, without SMTP."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from mail.compose.message_builder import without_bcc
from mail.delivery import pipeline, success_dsn
from mail.delivery.refusal_replies import is_spam_refusal, refusal_reply
from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, JobRecipient
from mail.envelope.smtp_replies import TRY_LATER_REPLY
from mail.inbound.arrival_record import ArrivalRecord
from mail.inbound.incoming_message import IncomingMessage
from mail.queue import dsn_requests
from mail.queue.enqueue import secret_context
from mail.recipients import recipient_routes
from mail.storage.message_trace import TraceRecorder
from mail.storage.received_messages import parse_storable_message
from models.errors import RequestError
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.store.outage_log import OUTAGES
from models.store.outages import storage_failure

log = logging.getLogger(__name__)


async def deliver_to_local_recipients(
    environment: Environment, job: DeliveryJob, raw_message: bytes
) -> dict[int, DeliveryResult]:
    """Deliver a message of the queue to its local recipients; return results by delivery ID.

    Recipients of other servers have no result: `job_without_results` is the job for
    them. A repeated delivery is recognized and stores nothing. An error of one recipient defers
    only it.
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
    results: dict[int, DeliveryResult] = {}
    for recipient in job.recipients:
        try:
            result = await _deliver_to_one_if_local(environment, mail, job, recipient)
        except Exception as error:  # noqa: BLE001 - it must not discard the results of the others
            result = _result_of_error(environment, job, error)
        if result is not None:
            results[recipient.delivery_id] = result
    return results


def _result_of_error(
    environment: Environment, job: DeliveryJob, error: Exception
) -> DeliveryResult:
    """Return the result of a recipient whose delivery failed, and log an unexpected error."""
    host = environment.options.hostname
    if isinstance(error, RequestError):
        result = _refusal_result(refusal_reply(error), host)
        return replace(result, is_spam_refusal=is_spam_refusal(error))
    if (failure := storage_failure(error)) is not None:
        OUTAGES.note_suppressed_record(failure)
        return _refusal_result(TRY_LATER_REPLY, host)
    log.error(
        "Delivery failed with an internal error", exc_info=error, extra={"queue": job.queue_id}
    )
    return DeliveryResult(DeliveryState.DEFERRED, 451, "4.3.0 Internal error", host)


def job_without_results(
    job: DeliveryJob, results_by_delivery: Mapping[int, DeliveryResult]
) -> DeliveryJob:
    """Return the job with only the recipients that have no result."""
    return replace(
        job,
        recipients=[
            recipient
            for recipient in job.recipients
            if recipient.delivery_id not in results_by_delivery
        ],
    )


async def _deliver_to_one_if_local(
    environment: Environment,
    incoming: IncomingMessage,
    job: DeliveryJob,
    job_recipient: JobRecipient,
) -> DeliveryResult | None:
    """Deliver to one recipient. Returns None if the message must go to another server.

    Raises the error of a failed delivery.
    """
    host = environment.options.hostname
    if job.has_arrival_record:
        record = _arrival_record(environment, job_recipient)
        if record.refusal_reply is not None:  # it was refused on arrival, and is only reported
            return _refusal_result(record.refusal_reply, host)
        incoming = record.apply_to(incoming)
    accepted_recipient = await recipient_routes.accept_recipient(
        environment, job_recipient.address, incoming.envelope_sender
    )
    accepted_recipient = replace(
        accepted_recipient,
        dsn_request=dsn_requests.dsn_request_for_next_server(environment, job, job_recipient),
    )
    if accepted_recipient.is_relayed_unchanged:
        return None
    (outcome,) = await pipeline.deliver_to_accepted_recipients(
        environment, incoming, [accepted_recipient]
    )
    if isinstance(outcome, BaseException):
        raise outcome
    result = DeliveryResult(DeliveryState.DELIVERED, 250, "2.0.0 Delivered here", host)
    dsn_action = success_dsn.dsn_action_reported_here_or_none(accepted_recipient)
    return replace(result, is_reported_remotely=dsn_action is None, local_action=dsn_action)


def _arrival_record(environment: Environment, job_recipient: JobRecipient) -> ArrivalRecord:
    """Return the arrival record of a recipient. Raises DecryptionError if its key is lost."""
    text = environment.secret_box.decrypt(
        job_recipient.secret or "", secret_context(job_recipient.delivery_id)
    )
    return ArrivalRecord.from_json(text)


def _refusal_result(smtp_reply: str, host: str) -> DeliveryResult:
    """Return the result of a recipient whom the listeners would refuse with this reply."""
    code, _, text = smtp_reply.partition(" ")
    return DeliveryResult.from_refusal(int(code), text, host)
