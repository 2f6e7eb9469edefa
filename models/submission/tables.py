"""Table of submissions."""

from enum import StrEnum

from sqlalchemy import Index, text
from sqlmodel import Field

from models.events.event_types import EventType
from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionallyOwnedRow,
    OptionalTimestamp,
    Timestamp,
    enum_column,
    foreign_key,
)

COPY_OF_RECEIVED = 0  # value of `copy_of` for the copy of a received message


class SubmissionState(StrEnum):
    """The state of a submission, derived from its queue entries."""

    SCHEDULED = "SCHEDULED"
    UNDOABLE = "UNDOABLE"
    QUEUED = "QUEUED"
    SENDING = "SENDING"
    SENT = "SENT"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


def submission_event_type(state: SubmissionState) -> EventType:
    """Return the type of the event of a submission that reached a state."""
    if state is SubmissionState.SENT:
        return EventType.SUBMISSION_SENT
    if state in {SubmissionState.PARTIAL, SubmissionState.FAILED}:
        return EventType.SUBMISSION_BOUNCED
    return EventType.SUBMISSION_UPDATED


# The text is exactly that of the partial indexes: a parameter can't use them.
IS_UNFINISHED = "state IN ('SCHEDULED', 'UNDOABLE', 'QUEUED', 'SENDING')"


class Submission(OptionallyOwnedRow, table=True):
    """A message handed in for sending, with a queue entry for each recipient.

    Without a user it is sent by the platform, for an address that forwards or as the copy of a BCC
    rule. No user is notified of it.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        Index("submissions_of_user", "user_id", "created_at", "id"),
        Index(
            "submissions_waiting",
            "created_at",
            "id",
            sqlite_where=text(IS_UNFINISHED),
            postgresql_where=text(IS_UNFINISHED),
        ),
        Index(
            "submissions_waiting_by_size",
            "size",
            "id",
            sqlite_where=text(IS_UNFINISHED),
            postgresql_where=text(IS_UNFINISHED),
        ),
        Index(
            "submissions_waiting_of_user",
            "user_id",
            "created_at",
            "id",
            sqlite_where=text(IS_UNFINISHED),
            postgresql_where=text(IS_UNFINISHED),
        ),
        Index(
            "submissions_held",
            "release_at",
            "id",
            sqlite_where=text("release_at IS NOT NULL"),
            postgresql_where=text("release_at IS NOT NULL"),
        ),
        Index(
            "submissions_copies",
            "copy_of",
            sqlite_where=text("copy_of IS NOT NULL"),
            postgresql_where=text("copy_of IS NOT NULL"),
        ),
        *(
            Index(
                name,
                "user_id",
                column,
                sqlite_where=text(f"{column} IS NOT NULL"),
                postgresql_where=text(f"{column} IS NOT NULL"),
            )
            for name, column in (
                ("submissions_header", "header_id"),
                ("submissions_envid", "envid"),
            )
        ),
    )

    tenant_id: Int64  # of its blobs
    # Without a user, administrators of this domain see it. It is the domain of the account or
    # address that it is sent for, which differs from the tenant after the account moved.
    domain_id: OptionalInt64 = None
    queue_id: str = Field(unique=True)
    state: SubmissionState = enum_column(SubmissionState, default=SubmissionState.QUEUED)
    # The copy of the submission or, if not `originates_here`, the stored message that it redirects.
    message_id: int | None = foreign_key("messages.id", ondelete="SET NULL", default=None)
    blob_id: Int64  # a reference row keeps it
    size: Int64
    envelope_from: str
    send_at: OptionalTimestamp = None
    undoable_until: OptionalTimestamp = None
    # The submission that a BCC rule copied, which may be deleted, or COPY_OF_RECEIVED.
    copy_of: OptionalInt64 = None
    # They identify a DSN that comes back: ENVID of the client (RFC 3461), and the Message-ID, cut.
    envid: str | None = None
    header_id: str | None = None
    ret: str | None = None  # RET (RFC 3461): FULL or HDRS; None: absent
    originates_here: bool = False  # composed here: it is signed for the domain of its author
    # End of the hold: a scheduled time or an undo window. Null if the submission is not held.
    release_at: OptionalTimestamp = None
    # The mailbox that the copy moves to from SCHEDULED when the hold ends; null: there is no copy.
    sent_mailbox_id: OptionalInt64 = None
    created_at: Timestamp
