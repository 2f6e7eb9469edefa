"""Tables of audits: legal copies of a user's mail, which outlast the account."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Big,
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Row,
    choice,
    plain,
    ref,
)
from models.users.roles import Role


class AuditRoad(StrEnum):
    """The reason why a message was copied."""

    STORED = "STORED"
    ARCHIVED = "ARCHIVED"
    RECEIVED = "RECEIVED"
    SAVED = "SAVED"
    SENT = "SENT"


class Audit(Row, table=True):
    """An audit of a user, who may be deleted: no foreign key points to the user.

    Its copies are a hash chain: `copies` is their number, `head` the hash of the last one.
    """

    __tablename__ = "audits"

    user_id: int = Field(sa_type=Big, index=True)
    username: str
    start: MaybeMoment = None  # of the time of arrival, inclusive
    end: MaybeMoment = None  # exclusive
    expires: datetime = Field(sa_type=Instant, index=True)
    reason: str | None = None
    created_at: Moment
    created_by: str
    task_id: Number  # of the task that made the first copies
    copied: bool = False  # all messages that existed at the start are copied
    copies: Number = 0
    size: Number = 0  # bytes of the messages
    head: str = ""
    ended_at: MaybeMoment = None  # its copies were deleted then, or are being deleted
    removed: bool = False  # ended early: the row is deleted with the last copy


class AuditCopy(Row, table=True):
    """A copy of a message. Its bytes are the blobs of its reference rows."""

    __tablename__ = "audit_copies"
    __table_args__ = (
        UniqueConstraint("audit_id", "position"),
        Index("audit_copies_of_origin", "audit_id", "origin_id", "digest", unique=True),
    )

    audit_id: int = ref("audits.id", index=False)
    position: Number  # in the chain, from 1
    origin_id: Number  # the message, or the submission if there is no message
    road: AuditRoad = choice(AuditRoad)
    mailbox_path: str | None = None
    digest: str  # SHA-256 of the whole message, hex
    size: Number
    blob_id: Number
    received_at: Moment
    date: MaybeMoment = None
    subject: str = ""
    from_name: str | None = None
    from_address: str | None = None
    to: list[list[str | None]] = plain(list)
    cc: list[list[str | None]] = plain(list)
    bcc: list[list[str | None]] = plain(list)
    message_id: str | None = None
    preview: str = ""
    attachment_count: Number = 0
    envelope_from: str | None = None
    envelope_to: list[str] = plain(list)
    copied_at: Moment
    hash: str  # of the other columns and the copy before: mail/storage/audit_copies.py


class AuditBlob(SQLModel, table=True):
    """The reference row that keeps a blob of an audit copy from being deleted."""

    __tablename__ = "audit_blobs"

    copy_id: int = ref("audit_copies.id", primary_key=True, index=False)
    blob_id: int = ref("blobs.id", primary_key=True, ondelete="RESTRICT")


class AuditAccess(Row, table=True):
    """A log entry: an administrator has read copies."""

    __tablename__ = "audit_accesses"
    __table_args__ = (Index("audit_accesses_of_audit", "audit_id", "at", "id"),)

    audit_id: int = ref("audits.id", index=False)
    at: Moment
    actor: str
    actor_id: MaybeNumber = None
    role: Role = choice(Role)
    ip: str | None = None
    action: str  # list, export
