"""Tables of legal holds: legal copies of a user's mail, which outlast the account."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
)
from models.users.roles import Role


class CopyOrigin(StrEnum):
    """The reason why a message was copied."""

    STORED = "STORED"
    DELETED = "DELETED"
    RECEIVED = "RECEIVED"
    SAVED = "SAVED"
    SENT = "SENT"


class LegalHoldAccessAction(StrEnum):
    """What an administrator did with the copies of a legal hold."""

    LIST = "LIST"
    EXPORT = "EXPORT"


class LegalHold(RowWithId, table=True):
    """A legal hold of a user, who may be deleted: no foreign key points to the user.

    Its copies are a hash chain: `copies` is their number, `head` the hash of the last one.
    """

    __tablename__ = "legal_holds"

    user_id: int = Field(sa_type=BIG_INTEGER, index=True)
    username: str
    starts_at: OptionalTimestamp = None  # of the time of arrival, inclusive
    ends_at: OptionalTimestamp = None  # exclusive
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)
    reason: str | None = None
    created_at: Timestamp
    created_by: str
    task_id: Int64  # of the task that made the first copies
    copied: bool = False  # all messages that existed at the start are copied
    copies: Int64 = 0
    size: Int64 = 0  # bytes of the messages
    head: str = ""
    ended_at: OptionalTimestamp = None  # its copies were deleted then, or are being deleted
    removed: bool = False  # ended early: the row is deleted with the last copy


class HeldCopy(RowWithId, table=True):
    """A copy of a message. Its bytes are the blobs of its reference rows."""

    __tablename__ = "held_copies"
    __table_args__ = (
        UniqueConstraint("legal_hold_id", "position"),
        Index("held_copies_of_origin", "legal_hold_id", "origin_id", "sha256", unique=True),
    )

    legal_hold_id: int = foreign_key("legal_holds.id", index=False)
    position: Int64  # in the chain, from 1
    origin_id: Int64  # the message, or the submission if there is no message
    origin: CopyOrigin = enum_column(CopyOrigin)
    mailbox_path: str | None = None
    sha256: str  # SHA-256 of the whole message, hex
    size: Int64
    blob_id: Int64
    received_at: Timestamp
    date: OptionalTimestamp = None
    subject: str = ""
    from_name: str | None = None
    from_address: str | None = None
    to: list[list[str | None]] = json_column(list)
    cc: list[list[str | None]] = json_column(list)
    bcc: list[list[str | None]] = json_column(list)
    message_id: str | None = None
    preview: str = ""
    attachment_count: Int64 = 0
    envelope_from: str | None = None
    envelope_to: list[str] = json_column(list)
    copied_at: Timestamp
    chain_hash: str  # of the other columns and the copy before: mail/storage/held_copies.py


class LegalHoldBlob(SQLModel, table=True):
    """The reference row that keeps a blob of a legal hold copy from being deleted."""

    __tablename__ = "legal_hold_blobs"

    copy_id: int = foreign_key("held_copies.id", primary_key=True, index=False)
    blob_id: int = foreign_key("blobs.id", primary_key=True, ondelete="RESTRICT")


class LegalHoldAccess(RowWithId, table=True):
    """A log entry: an administrator has read copies."""

    __tablename__ = "legal_hold_accesses"
    __table_args__ = (Index("legal_hold_accesses_of_legal_hold", "legal_hold_id", "at", "id"),)

    legal_hold_id: int = foreign_key("legal_holds.id", index=False)
    at: Timestamp
    actor: str
    actor_id: OptionalInt64 = None
    role: Role = enum_column(Role)
    ip: str | None = None
    action: LegalHoldAccessAction = enum_column(LegalHoldAccessAction)
