"""Messages on their way out."""

from enum import StrEnum

from sqlalchemy import Index, text
from sqlmodel import Field

from models.store.columns import MaybeMoment, MaybeNumber, MaybeOwned, Moment, Number, choice, ref

ARRIVED = 0  # a copy of what came in: of no submission


class SubmissionState(StrEnum):
    """Where a submission stands: the sum of its deliveries."""

    SCHEDULED = "SCHEDULED"
    HELD_FOR_UNDO = "HELD_FOR_UNDO"
    QUEUED = "QUEUED"
    SENDING = "SENDING"
    SENT = "SENT"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


# As the partial indexes have it, letter by letter: a parameter would not find them.
WAITING = "state IN ('SCHEDULED', 'HELD_FOR_UNDO', 'QUEUED', 'SENDING')"


class Submission(MaybeOwned, table=True):
    """A message handed in for sending, with a delivery for each recipient.

    What is nobody's is sent on by the platform itself, for an address that forwards, or is a
    copy that a rule has made: the account is not told of it.
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
    blob_id: Number  # its reference rows hold it
    size: Number
    envelope_from: str
    send_time: MaybeMoment = None
    undo_until: MaybeMoment = None
    # The submission that a rule had copied, which may be gone, or ARRIVED.
    copy_of: MaybeNumber = None
    # By these a report that comes back is known: ENVID as a program gave it (RFC 3461), and the
    # Message-ID, cut.
    envid: str | None = None
    header_id: str | None = None
    ret: str | None = None  # what a report of failure returns: FULL or HDRS; None: not said
    ours: bool = False  # written here: keys of its author's domain sign it
    # When the hold ends: a scheduled time or an undo window. Null if the submission is not held.
    release_at: MaybeMoment = None
    # The mailbox that the copy moves to from SCHEDULED when the hold ends; null: there is no copy.
    sent_mailbox_id: MaybeNumber = None
    created_at: Moment
