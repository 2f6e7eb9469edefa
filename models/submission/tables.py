"""Table of submissions."""

from enum import StrEnum

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import MaybeMoment, MaybeNumber, MaybeOwned, Moment, Number, choice, ref

ARRIVED = 0  # value of `copy_of` for the copy of a received message


class SubmissionState(StrEnum):
    """The state of a submission, derived from its queue entries."""

    SCHEDULED = "SCHEDULED"
    HELD_FOR_UNDO = "HELD_FOR_UNDO"
    QUEUED = "QUEUED"
    SENDING = "SENDING"
    SENT = "SENT"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


# The text is exactly that of the partial indexes: a parameter can't use them.
WAITING = "state IN ('SCHEDULED', 'HELD_FOR_UNDO', 'QUEUED', 'SENDING')"


class Submission(MaybeOwned, table=True):
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
            sqlite_where=text(WAITING),
            postgresql_where=text(WAITING),
        ),
        Index(
            "submissions_waiting_of_user",
            "user_id",
            "created_at",
            "id",
            sqlite_where=text(WAITING),
            postgresql_where=text(WAITING),
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

    tenant_id: Number
    queue_id: str = Field(unique=True)
    state: SubmissionState = choice(SubmissionState, default=SubmissionState.QUEUED)
    message_id: int | None = ref("messages.id", ondelete="SET NULL", default=None)
    blob_id: Number  # a reference row keeps it
    size: Number
    envelope_from: str
    send_time: MaybeMoment = None
    undo_until: MaybeMoment = None
    # The submission that a BCC rule copied, which may be deleted, or COPY_OF_RECEIVED.
    copy_of: MaybeNumber = None
    # They identify a DSN that comes back: ENVID of the client (RFC 3461), and the Message-ID, cut.
    envid: str | None = None
    header_id: str | None = None
    ret: str | None = None  # RET (RFC 3461): FULL or HDRS; None: absent
    ours: bool = False  # composed here: it is signed for the domain of its author
    # End of the hold: a scheduled time or an undo window. Null if the submission is not held.
    release_at: MaybeMoment = None
    # The mailbox that the copy moves to from SCHEDULED when the hold ends; null: there is no copy.
    sent_mailbox_id: MaybeNumber = None
    created_at: Moment
