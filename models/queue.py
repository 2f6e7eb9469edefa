"""The outbound queue: one row per recipient."""

from enum import StrEnum

from sqlalchemy import Index, text

from models.columns import MaybeMoment, MaybeNumber, MaybeOwned, Moment, Number, choice, ref

QUEUE = -1  # the bell of whoever sends, beside those of the streams; rung after the commit


class DeliveryState(StrEnum):
    """How far a delivery to one recipient has come."""

    PENDING = "PENDING"
    DEFERRED = "DEFERRED"
    DELIVERED = "DELIVERED"
    RELAYED = "RELAYED"
    BOUNCED = "BOUNCED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


class Delivery(MaybeOwned, table=True):
    """One recipient of a submission. A lease, not a lock: whoever holds it may be dead."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index(
            "deliveries_due",
            "next_at",
            "id",
            sqlite_where=text("next_at IS NOT NULL"),
            postgresql_where=text("next_at IS NOT NULL"),
        ),
    )

    submission_id: int = ref("submissions.id")
    recipient: str
    domain: str  # or `via`: what is sent there is sent in one go
    via: str | None = None  # the relay or page it goes to, without a password
    secret: str | None = None  # the same with its password, sealed for the delivery
    state: DeliveryState = choice(DeliveryState, default=DeliveryState.PENDING)
    attempts: Number = 0
    next_at: MaybeMoment = None  # None: nothing more is tried
    leased_until: MaybeMoment = None
    lease: MaybeNumber = None  # who holds it
    final_dot_at: MaybeMoment = None  # the whole message may be with the other side since
    last_code: MaybeNumber = None  # SMTP
    last_response: str | None = None
    mx: str | None = None
    tls: str | None = None  # version and cipher
    delivered_at: MaybeMoment = None
    created_at: Moment
    expires_at: Moment
