"""Failed deliveries of a message that other recipients have taken.

The client gets one reply for all of them, so that the queue does the rest:

- After a temporary failure the queue delivers later. It uses the authentication results and the
  scan result of the arrival. If the entry expires, the sender gets a DSN.
- After a permanent refusal nothing is delivered. The queue sends a DSN to a verified sender.
- Refused spam is dropped. No DSN is sent for spam and for forged senders, since it could reach
  somebody else.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mail.delivery import success_dsn
from mail.delivery.refusal_replies import is_permanent_refusal, is_spam_refusal, refusal_reply
from mail.envelope.dsn_parameters import NO_REPORTS, DsnRequest, NotifyCondition
from mail.inbound.arrival_record import ArrivalRecord
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.deferred_delivery import DeferredRecipient, enqueue_deferred_recipients
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.recipients.traced_domains import traced_domain_id_or_none
from models.errors import RequestError
from models.events.journal import PLATFORM
from models.runtime.environment import Environment

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """A recipient on this server whose delivery failed. `error` is None if it never began."""

    address: str
    tenant_id: int
    dsn_request: DsnRequest
    error: BaseException | None = None
    domain_id: int | None = None  # whose administrators see the failure; None: of the tenant

    @property
    def traced_domain_id(self) -> int:
        """The domain whose administrators see the failure in traces."""
        return self.tenant_id if self.domain_id is None else self.domain_id

    @property
    def is_retried(self) -> bool:
        """True if the delivery failed for now only."""
        return self.error is None or not is_permanent_refusal(self.error)


def failures_if_partly_accepted(
    accepted_recipients: Sequence[AcceptedRecipient], results: Sequence[object]
) -> list[FailedDelivery]:
    """Return the failed recipients if another one took the message, else an empty list."""
    failures = [
        FailedDelivery(
            recipient.address,
            _tenant_id(recipient),
            recipient.dsn_request,
            error=result,
            domain_id=traced_domain_id_or_none(recipient),
        )
        for recipient, result in zip(accepted_recipients, results, strict=True)
        if isinstance(result, BaseException)
    ]
    return failures if len(failures) < len(results) else []


def _tenant_id(accepted: AcceptedRecipient) -> int:
    """Return the tenant of the first account or forward, else of the domain."""
    tenant_ids = [account.recipient.tenant_id for account in accepted.accounts]
    tenant_ids += [forward.tenant_id for forward in accepted.forwards]
    return next(iter(tenant_ids), accepted.domain_id or PLATFORM)


async def enqueue_failed_deliveries(
    environment: Environment, incoming: IncomingMessage, failures: Sequence[FailedDelivery]
) -> None:
    """Queue the retries and reports of failed deliveries. On return they are durable."""
    if not failures:
        return
    is_spam_or_forged = success_dsn.is_spam_or_forged(environment, incoming)
    is_backscatter = success_dsn.is_dsn_backscatter(environment, incoming)
    deferred_recipients = []
    for failure in failures:
        is_unreported = is_spam_or_forged if failure.is_retried else is_backscatter
        dsn_request = NO_REPORTS if is_unreported else failure.dsn_request
        reply = _permanent_reply_or_none(failure)
        if reply is not None and not _is_failure_reported(incoming, failure, dsn_request):
            log.info(
                "Refusal not reported to the sender",
                extra={"id": incoming.trace.queue_id, "reply": reply},
            )
            continue
        record = ArrivalRecord.of_message(incoming, reply)
        deferred_recipients.append(
            DeferredRecipient(
                failure.address,
                failure.tenant_id,
                dsn_request,
                record.to_json(),
                failure.traced_domain_id,
            )
        )
    await enqueue_deferred_recipients(
        environment,
        incoming.message,
        (incoming.content_digest, incoming.envelope_sender),
        deferred_recipients,
    )


def _permanent_reply_or_none(failure: FailedDelivery) -> str | None:
    """Return the reply to a permanent refusal, None for a temporary failure."""
    error = failure.error
    if isinstance(error, RequestError) and is_permanent_refusal(error):
        return refusal_reply(error)
    return None


def _is_failure_reported(
    incoming: IncomingMessage, failure: FailedDelivery, dsn_request: DsnRequest
) -> bool:
    """Return True if the sender gets a DSN for a permanent refusal."""
    is_spam = failure.error is not None and is_spam_refusal(failure.error)
    is_wanted = dsn_request.is_report_wanted(NotifyCondition.FAILURE)
    return bool(incoming.envelope_sender) and is_wanted and not is_spam
