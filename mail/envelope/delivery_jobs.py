"""Data classes that the parts of the queue exchange."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from mail.envelope.dsn_parameters import DEFAULT_REPORTS, DsnRequest
from models.events.journal import PLATFORM
from models.queue.tables import NORMAL_RANK, DeliveryState

MAX_TRANSACTION_RECIPIENTS = 100  # every server accepts this number (RFC 5321, section 4.5.3.1.8)
FIRST_PERMANENT_CODE = 500  # reply codes from here on are permanent failures


class DsnAction(StrEnum):
    """The Action field of a DSN (RFC 3464, section 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class JobRecipient:
    """One recipient of a delivery job."""

    delivery_id: int
    address: str
    attempts: int  # including the current one
    expires_at: datetime
    secret: str | None = field(default=None, repr=False)  # `QueueEntry.secret`
    dsn_request: DsnRequest = DEFAULT_REPORTS
    is_delay_reported: bool = False  # the sender has got a delay report


@dataclass(frozen=True, slots=True)
class DeliveryJob:
    """Recipients of one submission in one domain, held under one lease."""

    lease: int
    submission_id: int
    queue_id: str
    user_id: int | None  # None: the platform sends it
    tenant_id: int
    blob_id: int
    sender: str  # envelope sender; empty for DSNs
    domain: str
    created_at: datetime
    recipients: Sequence[JobRecipient]
    endpoint_url: str | None = None  # relay or webhook of a forward; `domain` has the same value
    is_copy: bool = False  # made by a BCC rule; no DSNs are sent for it
    rank: int = NORMAL_RANK  # of the line it was taken from (mail/queue/destination_order.py)
    requires_tls: bool = False  # the sender requires TLS
    message_id_header: str | None = None
    first_due_at: datetime | None = None  # time of the first attempt; None: `created_at`
    flushed_at: datetime | None = None  # time of the last flush by an operator
    originates_here: bool = False  # submitted on this server, so it gets DKIM signatures
    domain_id: int | None = None  # of the submission; its administrators see the DSN

    @property
    def has_arrival_record(self) -> bool:
        """True if it is a received message that could not be delivered at once."""
        return self.endpoint_url is None and any(
            recipient.secret is not None for recipient in self.recipients
        )

    @property
    def journal_stream(self) -> int:
        """The journal stream of the submission."""
        return PLATFORM if self.user_id is None else self.user_id


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of one attempt for one recipient."""

    state: DeliveryState
    reply_code: int
    reply_text: str  # of the last SMTP reply
    mx: str | None = None
    tls_description: str | None = None  # protocol version and cipher
    is_uncertain: bool = False  # the final dot was sent, so the server may have the message
    is_reported_remotely: bool = False  # the server offers DSN and sends the success report
    local_action: DsnAction | None = None  # the delivery ended on this server, with this action
    is_spam_refusal: bool = False  # a DSN would be backscatter
    paused_for: timedelta | None = None  # no attempt was made, since the destination is paused

    @classmethod
    def from_refusal(
        cls,
        reply_code: int,
        reply_text: str,
        mx: str | None = None,
        tls_description: str | None = None,
    ) -> "DeliveryResult":
        """A failure: permanent if the code is 500 or higher, otherwise temporary."""
        is_permanent = reply_code >= FIRST_PERMANENT_CODE
        state = DeliveryState.BOUNCED if is_permanent else DeliveryState.DEFERRED
        return cls(state, reply_code, reply_text, mx, tls_description)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Concurrency limits and timeouts of a queue worker. Times are in seconds."""

    report_poll_interval: float = 40.0  # between two polls for success reports that are still owed
    max_destinations: int = 20
    max_connections_per_domain: int | None = None  # None: the setting decides
    claim_size: int = 25  # recipients taken at once; can be exceeded by one SMTP transaction
    poll_interval: float = 15.0  # between two polls without a wake-up
    connect_timeout: float = 30.0
    greeting_timeout: float = 120.0  # for connecting, TLS, EHLO and login together
    envelope_timeout: float = 900.0  # for MAIL and all RCPT commands
    data_timeout: float = 3600.0  # for sending the message
    reply_timeout: float = 300.0  # for the reply to a command (RFC 5321, section 4.5.3.2)
    final_reply_timeout: float = 600.0  # for the reply to the final dot
    stall_timeout: float = 180.0  # without progress while the message is sent


def split_into_batches(
    recipients: Sequence[JobRecipient], batch_size: int
) -> list[Sequence[JobRecipient]]:
    """Split recipients into batches of at most `batch_size`."""
    return [recipients[at : at + batch_size] for at in range(0, len(recipients), batch_size)]
