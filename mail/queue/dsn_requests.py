"""Which DSNs a sender gets (RFC 3461), and the DSN parameters for the next server.

If the next server offers DSN, it sends the reports. It gets the parameters of the sender and an
envelope id. An envelope id of this server contains a proof that only servers that got the mail for
that domain know, so that a returning report can be verified.
"""

import hmac
import re
from base64 import b32encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult, JobRecipient
from mail.envelope.dsn_parameters import (
    NO_REPORTS,
    DsnRequest,
    NotifyCondition,
    format_mail_parameters,
    format_rcpt_parameters,
    typed_address,
)
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment

PROOF_LENGTH = 16  # base32 characters, 80 bits
DELIVERED_STATES = frozenset({DeliveryState.DELIVERED, DeliveryState.RELAYED})
FAILED_STATES = frozenset({DeliveryState.BOUNCED, DeliveryState.EXPIRED})

_OWN_ENVID = re.compile(r"([0-9a-f]{20})\.([a-z2-7]{16})")


def results_to_report(
    environment: Environment,
    job: DeliveryJob,
    results_by_delivery_id: Mapping[int, DeliveryResult],
    now: datetime,
) -> dict[NotifyCondition, dict[int, DeliveryResult]]:
    """The results that the sender gets a DSN for, by NOTIFY condition and delivery id.

    Empty for messages without an envelope sender and for copies of BCC rules.
    """
    reports: dict[NotifyCondition, dict[int, DeliveryResult]] = {}
    if not job.sender or job.is_copy:
        return reports
    for recipient in job.recipients:
        result = results_by_delivery_id.get(recipient.delivery_id)
        condition = (
            _report_condition_or_none(environment, job, recipient, result, now)
            if result is not None
            else None
        )
        if (
            result is not None
            and condition is not None
            and recipient.dsn_request.is_report_wanted(condition)
        ):
            reports.setdefault(condition, {})[recipient.delivery_id] = result
    return reports


def _report_condition_or_none(
    environment: Environment,
    job: DeliveryJob,
    recipient: JobRecipient,
    result: DeliveryResult,
    now: datetime,
) -> NotifyCondition | None:
    """The NOTIFY condition that a result meets. None if it needs no report now."""
    if result.state in FAILED_STATES:
        return None if result.is_spam_refusal else NotifyCondition.FAILURE
    if result.state in DELIVERED_STATES:
        return None if result.is_reported_remotely else NotifyCondition.SUCCESS
    report_at = delay_report_at(environment, job, recipient)
    return NotifyCondition.DELAY if report_at is not None and now >= report_at else None


def delay_report_at(
    environment: Environment, job: DeliveryJob, recipient: JobRecipient
) -> datetime | None:
    """Time of the delay report to the sender. None if it was sent or is not wanted."""
    notice_delay = environment.options.queue_delay_notice_after
    if (
        not notice_delay
        or recipient.is_delay_reported
        or job.is_copy
        or not job.sender
        or not recipient.dsn_request.is_report_wanted(NotifyCondition.DELAY)
    ):
        return None
    return (job.first_due_at or job.created_at) + notice_delay


def clamp_attempt_to_report_or_expiry(
    environment: Environment, job: DeliveryJob, recipient: JobRecipient, planned_at: datetime
) -> datetime:
    """Time of the next attempt, not later than the delay report or the expiry."""
    report_at = delay_report_at(environment, job, recipient)
    earlier_times = [report_at] if report_at is not None and environment.now() < report_at else []
    return min(planned_at, recipient.expires_at, *earlier_times)


def dsn_request_for_next_server(
    environment: Environment, job: DeliveryJob, recipient: JobRecipient
) -> DsnRequest:
    """The DSN request for a recipient that is sent to the next server."""
    if not job.sender or job.is_copy:
        return NO_REPORTS
    envid = recipient.dsn_request.envid
    if envid is None and job.user_id is not None:
        envid = f"{job.queue_id}.{envelope_id_proof(environment, job.queue_id, job.domain)}"
    return replace(
        recipient.dsn_request,
        envid=envid,
        orcpt=recipient.dsn_request.orcpt or typed_address(recipient.address),
    )


def mail_from_parameters(environment: Environment, job: DeliveryJob) -> list[str]:
    """DSN parameters of MAIL FROM, for a server that offers DSN."""
    return format_mail_parameters(dsn_request_for_next_server(environment, job, job.recipients[0]))


def rcpt_to_parameters(recipient: JobRecipient) -> list[str]:
    """DSN parameters of RCPT TO, for a server that offers DSN."""
    return format_rcpt_parameters(
        replace(
            recipient.dsn_request,
            orcpt=recipient.dsn_request.orcpt or typed_address(recipient.address),
        )
    )


def envelope_id_proof(environment: Environment, queue_id: str, domain: str) -> str:
    """HMAC that shows that its holder got the mail of a submission for a domain."""
    signed_text = "\0".join(["envid", queue_id, domain.lower()]).encode()
    return (
        b32encode(hmac.digest(environment.signing_secret, signed_text, "sha256"))
        .decode()[:PROOF_LENGTH]
        .lower()
    )


@dataclass(frozen=True)
class OwnEnvelopeId:
    """The members of an envelope id that this server has given. They are not verified."""

    queue_id: str
    proof: str


def parse_own_envelope_id_or_none(envid: str) -> OwnEnvelopeId | None:
    """Parse an envelope id in any case. None for an id of another server."""
    match = _OWN_ENVID.fullmatch(envid.strip().lower())
    return OwnEnvelopeId(match[1], match[2]) if match else None


def is_valid_proof(environment: Environment, queue_id: str, domain: str, candidate: str) -> bool:
    """True if `candidate` is the proof of the submission for the domain."""
    return hmac.compare_digest(candidate, envelope_id_proof(environment, queue_id, domain))
