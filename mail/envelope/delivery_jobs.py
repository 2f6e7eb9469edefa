"""Data classes that the parts of the queue exchange."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from mail.envelope.dsn_parameters import USUAL, Wish
from models.events.journal import PLATFORM
from models.queue.tables import MIDDLE, DeliveryState

TOGETHER = 100  # every server accepts this number (RFC 5321, section 4.5.3.1.8)
PERMANENT = 500  # reply codes from here on are permanent failures


class Action(StrEnum):
    """The Action field of a DSN (RFC 3464, section 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class To:
    """One recipient of a delivery job."""

    delivery_id: int
    address: str
    attempts: int  # including the current one
    expires_at: datetime
    secret: str | None = field(default=None, repr=False)  # `Delivery.secret`
    wish: Wish = USUAL
    delay_told: bool = False  # the sender has got a delay report


@dataclass(frozen=True, slots=True)
class Job:
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
    recipients: Sequence[To]
    via: str | None = None  # relay or webhook of a forward; `domain` has the same value
    copy: bool = False  # made by a BCC rule; no DSNs are sent for it
    rank: int = MIDDLE  # of the line it was taken from (mail/queue/destination_order.py)
    tls: bool = False  # the sender requires TLS
    header_id: str | None = None
    begun_at: datetime | None = None  # time of the first attempt; None: `created_at`
    hurried_at: datetime | None = None  # time of the last flush by an operator
    ours: bool = False  # submitted on this server, so it gets DKIM signatures

    @property
    def stream(self) -> int:
        """The journal stream of the submission."""
        return PLATFORM if self.user_id is None else self.user_id


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one attempt for one recipient."""

    state: DeliveryState
    code: int
    text: str  # of the last SMTP reply
    mx: str | None = None
    tls: str | None = None  # protocol version and cipher
    after_dot: bool = False  # the final dot was sent, so the server may have the message
    told_there: bool = False  # the server offers DSN and sends the success report
    here: Action | None = None  # the delivery ended on this server, with this action
    alone: timedelta | None = None  # no attempt was made, since the destination is paused

    @classmethod
    def refused(
        cls, code: int, text: str, mx: str | None = None, tls: str | None = None
    ) -> "Result":
        """A failure: permanent if the code is 500 or higher, otherwise temporary."""
        final = code >= PERMANENT
        state = DeliveryState.BOUNCED if final else DeliveryState.DEFERRED
        return cls(state, code, text, mx, tls)


@dataclass(frozen=True, slots=True)
class Pace:
    """Concurrency limits and timeouts of a queue worker. Times are in seconds."""

    owed: float = 40.0  # between two polls for success reports that are still owed
    at_once: int = 20
    per_domain: int | None = None  # None: the setting decides
    claim: int = 25  # recipients taken at once; can be exceeded by one SMTP transaction
    look: float = 15.0  # between two polls without a wake-up
    connect: float = 30.0
    greeting: float = 120.0  # for connecting, TLS, EHLO and login together
    envelope: float = 900.0  # for MAIL and all RCPT commands
    data: float = 3600.0  # for sending the message
    answer: float = 300.0  # for the reply to a command (RFC 5321, section 4.5.3.2)
    final: float = 600.0  # for the reply to the final dot
    stall: float = 180.0  # without progress while the message is sent
