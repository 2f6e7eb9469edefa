"""Tables of the outbound queue: one row for each recipient."""

from enum import StrEnum
from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionallyOwnedRow,
    OptionalTimestamp,
    Timestamp,
    enum_column,
    foreign_key,
    partial_index,
)


class DeliveryState(StrEnum):
    """The state of the delivery to one recipient."""

    PENDING = "PENDING"
    DEFERRED = "DEFERRED"
    DELIVERED = "DELIVERED"
    RELAYED = "RELAYED"
    BOUNCED = "BOUNCED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


# Entries that become due at a time: not in the queue of their destination, not held, not leased.
IS_SCHEDULED = "next_at IS NOT NULL AND ready_at IS NULL AND held_at IS NULL AND lease IS NULL"
# Entries that are not finished. The text is exactly that of the index: a parameter can't use it.
IS_OPEN = "state IN ('PENDING', 'DEFERRED')"
IS_DEFERRED = "state = 'DEFERRED'"  # entries that are retried
RANK_COUNT = 3  # urgent; normal; bulk mail and retries
NORMAL_RANK = 1


class QueueEntry(OptionallyOwnedRow, table=True):
    """One recipient of a submission. The process that sends it has a lease."""

    __tablename__ = "queue_entries"
    __table_args__ = (
        partial_index("queue_entries_due", IS_SCHEDULED, "next_at", "id"),
        partial_index(
            "queue_entries_ready", "ready_at IS NOT NULL", "rank", "domain", "ready_at", "id"
        ),
        partial_index("queue_entries_open", IS_OPEN, "submission_id"),
        partial_index("queue_entries_deferred", IS_DEFERRED, "submission_id"),
        partial_index("queue_entries_held", "held_at IS NOT NULL", "submission_id"),
        partial_index("queue_entries_leased", "lease IS NOT NULL", "lease", "submission_id"),
        partial_index(
            "queue_entries_pending_dsn", "pending_dsn_action IS NOT NULL", "submission_id", "id"
        ),
    )

    submission_id: int = foreign_key("submissions.id")
    recipient: str
    domain: str  # or `via`: entries with the same value share connections
    via: str | None = None  # the relay or webhook it goes to, without its password
    # Encrypted: `via` with its password; without `via`, the arrival record of a received message.
    secret: str | None = None
    state: DeliveryState = enum_column(DeliveryState, default=DeliveryState.PENDING)
    attempts: Int64 = 0
    next_at: OptionalTimestamp = None  # None: no more attempts
    ready_at: OptionalTimestamp = None  # its place in the queue of its destination; None: not in it
    rank: Int64 = NORMAL_RANK  # see RANK_COUNT
    held_at: OptionalTimestamp = None  # when an administrator put it on hold
    flushed_at: OptionalTimestamp = None  # when an immediate attempt was requested
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    lease: OptionalInt64 = None  # number of the current lease
    final_dot_at: OptionalTimestamp = None  # since then the other server may have the whole message
    last_code: OptionalInt64 = None  # SMTP
    last_response: str | None = None
    mx: str | None = None
    tls: str | None = None  # version and cipher
    delivered_at: OptionalTimestamp = None
    notify: str | None = None  # NOTIFY (RFC 3461); None: absent
    orcpt: str | None = None  # the original recipient: type;address
    delay_reported_at: OptionalTimestamp = None
    pending_dsn_action: str | None = None  # the result that the sender is still to be notified of
    reported_at: OptionalTimestamp = (
        None  # when another server, which accepted the message, sent a DSN
    )
    dsn_reporter: str | None = None  # the name of that server
    dsn_verified: bool | None = None  # the DSN has the secret that only that server got
    created_at: Timestamp
    expires_at: Timestamp


class DestinationSlot(SQLModel, table=True):
    """The next free delivery slot of a destination with a limit of messages per minute."""

    __tablename__ = "destination_slots"

    destination: str = Field(primary_key=True)
    free_at: Timestamp  # time of the next free slot
    until: Timestamp = Field(index=True)  # time of the last slot of entries that were postponed


def last_reply(entry: Any) -> str | None:
    """Return the last SMTP reply of the other server in one line; None if there is none.

    Reads `last_code` and `last_response` of the row.
    """
    reply = " ".join(str(part) for part in (entry.last_code, entry.last_response) if part)
    return reply or None
