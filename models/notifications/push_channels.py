"""Table of push channels: how users are notified of new mail."""

from enum import StrEnum

from sqlalchemy import ColumnElement, Index, Select, exists, func, select, text
from sqlalchemy.orm import Mapped
from sqlmodel import col

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    enum_column,
    foreign_key,
    json_column,
    lease_index,
)


class PushKind(StrEnum):
    """The service of a push channel."""

    PUSHOVER = "PUSHOVER"
    WEB_PUSH = "WEB_PUSH"
    HTTP = "HTTP"


class PushChannel(UserOwnedRow, table=True):
    """A service that notifies a user of new mail: one channel of each kind.

    The process with the lease reads the journal of the user after `number`.
    """

    __tablename__ = "push_channels"
    __table_args__ = (
        Index("push_channels_kind", "user_id", "kind", unique=True),
        Index(
            "push_channels_retry",
            "retry_at",
            sqlite_where=text("retry_at IS NOT NULL"),
            postgresql_where=text("retry_at IS NOT NULL"),
        ),
        Index(
            "push_channels_test",
            "test_at",
            sqlite_where=text("test_at IS NOT NULL"),
            postgresql_where=text("test_at IS NOT NULL"),
        ),
        lease_index("push_channels"),
    )

    user_id: int = foreign_key("users.id", index=False)
    kind: PushKind = enum_column(PushKind)
    active: bool = True
    target: str  # encrypted JSON: key, token, endpoint
    title: str | None = None
    text: str | None = None
    senders: list[str] = json_column(list)
    senders_regex: str | None = None
    high_priority_only: bool = False
    pass_priority: bool = False
    mailboxes: list[int] = json_column(list)
    number: Int64 = 0  # position up to which the journal was read
    test_at: OptionalTimestamp = None  # when a test notification was requested
    failures: Int64 = 0  # in a row
    retry_at: OptionalTimestamp = None  # nothing is sent before
    last_error: str | None = None
    last_push_at: OptionalTimestamp = None
    # start of the window in which notifications are counted and limited
    window_at: OptionalTimestamp = None
    pushed: Int64 = 0  # notifications in that window
    lease: OptionalInt64 = None
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    created_at: Timestamp
    updated_at: Timestamp


class VapidKeyPair(RowWithId, table=True):
    """The key pair that identifies this platform to push services (RFC 8292): the only row."""

    __tablename__ = "vapid_key_pairs"

    public: str  # base64url of the uncompressed point, as browsers need it
    private: str  # encrypted
    created_at: Timestamp


def has_active_channel(stream_id: Mapped[int]) -> ColumnElement[bool]:
    """Return SQL that is true if a stream has active push channels."""
    return exists().where(col(PushChannel.user_id) == stream_id, col(PushChannel.active))


def lowest_push_read_position(stream_id: Mapped[int]) -> Select[int]:
    """Return SQL for the lowest position that the active channels of a stream have read."""
    first = select(func.min(col(PushChannel.number)))
    return first.where(col(PushChannel.user_id) == stream_id, col(PushChannel.active))
