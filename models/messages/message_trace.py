"""Table of the delivery trace."""

from enum import StrEnum

from sqlalchemy import Index, text
from sqlmodel import Field

from models.logs.entries import LogComponent
from models.store.columns import OptionalInt64, RowWithId, Timestamp, enum_column


class DeliveryTraceEventKind(StrEnum):
    """What happened to a message for one recipient."""

    ACCEPTED = "ACCEPTED"
    REJECTED = "REJECTED"
    CLASSIFIED = "CLASSIFIED"
    QUARANTINED = "QUARANTINED"
    RELEASED = "RELEASED"
    STORED = "STORED"
    NOT_STORED = "NOT_STORED"
    AUTOREPLY_SENT = "AUTOREPLY_SENT"
    AUTOREPLY_NOT_SENT = "AUTOREPLY_NOT_SENT"
    FORWARDED = "FORWARDED"
    NOT_FORWARDED = "NOT_FORWARDED"
    DISCARDED = "DISCARDED"
    REFUSED = "REFUSED"
    QUEUED = "QUEUED"
    COPIED = "COPIED"
    # the states of a delivery: DeliveryState
    PENDING = "PENDING"
    DEFERRED = "DEFERRED"
    DELIVERED = "DELIVERED"
    RELAYED = "RELAYED"
    BOUNCED = "BOUNCED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


class DeliveryTraceStep(RowWithId, table=True):
    """A step of a message for one recipient. With a submission: that it entered the queue."""

    __tablename__ = "delivery_trace_steps"
    __table_args__ = (
        Index("delivery_trace_steps_of_queue_id", "queue_id", "at", "id"),
        Index(
            "delivery_trace_steps_of_message_id",
            *("message_id", "at", "id"),
            sqlite_where=text("message_id IS NOT NULL"),
            postgresql_where=text("message_id IS NOT NULL"),
        ),
        *(
            Index(
                f"delivery_trace_steps_of_{name}",
                *(column, "at", "id"),
                sqlite_where=text(f"{column} IS NOT NULL"),
                postgresql_where=text(f"{column} IS NOT NULL"),
            )
            for name, column in (
                ("recipient", "normalized_address"),
                ("recipient_domain", "recipient_domain"),
                ("sender", "normalized_sender_address"),
                ("sender_domain", "sender_domain"),
            )
        ),
    )

    at: Timestamp = Field(index=True)
    queue_id: str  # assigned on arrival, or in the queue
    # Message-ID in angle brackets, cut: mail/storage/message_trace.py
    message_id: str | None = None
    component: LogComponent = enum_column(LogComponent, default=LogComponent.MTA)
    event: DeliveryTraceEventKind = enum_column(DeliveryTraceEventKind)
    detail: str | None = None
    address: str | None = None  # of the recipient, as given
    normalized_address: str | None = None  # the same in normal form
    recipient_domain: str | None = None  # of `normalized_address`
    sender: str | None = None  # of the envelope, as given; None if it is empty or not known
    normalized_sender_address: str | None = None  # the same in normal form
    sender_domain: str | None = None  # of `normalized_sender_address`
    # the message that was stored or is sent; it may be deleted
    stored_message_id: OptionalInt64 = None
    domain_id: OptionalInt64 = None  # its administrators can see the step; it may be deleted
    submission_id: OptionalInt64 = None  # it may be deleted
