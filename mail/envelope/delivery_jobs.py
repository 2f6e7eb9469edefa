"""What is handed from one part of the queue to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from mail.envelope.dsn_parameters import USUAL, Wish
from models.events.journal import PLATFORM
from models.queue.tables import MIDDLE, DeliveryState

TOGETHER = 100  # recipients of a transaction: what every server takes (RFC 5321, 4.5.3.1.8)
PERMANENT = 500  # SMTP codes from here on do not change by waiting


class Action(StrEnum):
    """What became of a recipient (RFC 3464, section 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class To:
    """One recipient of a job."""

    delivery_id: int
    address: str
    attempts: int  # this one included
    expires_at: datetime
    secret: str | None = field(default=None, repr=False)  # as `Delivery` has it
    wish: Wish = USUAL
    delay_told: bool = False  # the sender knows that it takes long


@dataclass(frozen=True, slots=True)
class Job:
    """Recipients of one submission in one domain, held under one lease."""

    lease: int
    submission_id: int
    queue_id: str
    user_id: int | None  # None: it is the platform's own doing
    tenant_id: int
    blob_id: int
    sender: str  # envelope; empty for reports
    domain: str
    created_at: datetime
    recipients: Sequence[To]
    via: str | None = None  # the relay or page they go to; `domain` is the same
    copy: bool = False  # by a rule: nobody is told of it
    rank: int = MIDDLE  # of the line it was taken from
    tls: bool = False  # its sender wants TLS, or nothing is sent
    header_id: str | None = None
    begun_at: datetime | None = None  # when it was to be sent first; None: as it was created
    hurried_at: datetime | None = None  # it is to be tried as soon as may be, somebody said then
    ours: bool = False  # written here: it is signed

    @property
    def stream(self) -> int:
        """Whose journal tells of it."""
        return PLATFORM if self.user_id is None else self.user_id


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one recipient in one attempt."""

    state: DeliveryState
    code: int
    text: str  # of the last answer
    mx: str | None = None
    tls: str | None = None  # protocol version and cipher
    after_dot: bool = False  # the other side may have it in spite of all
    told_there: bool = False  # the other side reports of it, where that is wanted
    here: Action | None = None  # it has come to its end with us, and how
    alone: timedelta | None = None  # it was not tried: its place is down, and left alone for this

    @classmethod
    def refused(
        cls, code: int, text: str, mx: str | None = None, tls: str | None = None
    ) -> "Result":
        """A failure: for good with 5xx, else until the next attempt."""
        final = code >= PERMANENT
        state = DeliveryState.BOUNCED if final else DeliveryState.DEFERRED
        return cls(state, code, text, mx, tls)


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard the queue works."""

    owed: float = 40.0  # seconds between two looks for reports that nobody has made
    at_once: int = 20  # destinations
    per_domain: int | None = None  # connections, where it is not the setting that says so
    claim: int = 25  # recipients taken at once, and what belongs to the same transaction
    look: float = 15.0  # seconds between two looks for what no bell told of
    connect: float = 30.0  # seconds
    greeting: float = 120.0  # seconds until all that comes before the first message is done
    envelope: float = 900.0  # seconds that naming sender and recipients may take
    data: float = 3600.0  # seconds that a message may take to go
    answer: float = 300.0  # seconds a command may take (RFC 5321, section 4.5.3.2)
    final: float = 600.0  # seconds the answer to the dot may take
    stall: float = 180.0  # seconds without progress while a message is sent
