"""Messages on their way out."""

from enum import StrEnum

from sqlalchemy import Index, text
from sqlmodel import Field

from models.columns import MaybeMoment, MaybeNumber, MaybeOwned, Moment, Number, choice, ref

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


class Submission(MaybeOwned, table=True):
    """A message handed in for sending, with a delivery for each recipient.

    What is nobody's is sent on by the platform itself, for an address that forwards, or is a
    copy that a rule has made: the account is not told of it.
    """

    __tablename__ = "submissions"
    __table_args__ = (
        Index("submissions_of_user", "user_id", "created_at", "id"),
        Index(
            "submissions_copies",
            "copy_of",
            sqlite_where=text("copy_of IS NOT NULL"),
            postgresql_where=text("copy_of IS NOT NULL"),
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
    created_at: Moment
