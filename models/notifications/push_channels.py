"""Table of push channels: how users are notified of new mail."""

from enum import StrEnum

from sqlalchemy import ColumnElement, Index, Select, exists, func, select, text
from sqlalchemy.orm import Mapped
from sqlmodel import col

from models.store.columns import (
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    Row,
    choice,
    lease_index,
    plain,
    ref,
)


class PushKind(StrEnum):
    """The service of a push channel."""

    PUSHOVER = "PUSHOVER"
    WEB_PUSH = "WEB_PUSH"
    HTTP = "HTTP"


class PushChannel(Owned, table=True):
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

    user_id: int = ref("users.id", index=False)
    kind: PushKind = choice(PushKind)
    active: bool = True
    target: str  # encrypted JSON: key, token, endpoint
    title: str | None = None
    text: str | None = None
    senders: list[str] = plain(list)
    senders_regex: str | None = None
    only_priority: bool = False
    evaluate_priority: bool = False
    mailboxes: list[int] = plain(list)
    number: Number = 0  # position up to which the journal was read
    test_at: MaybeMoment = None  # when a test notification was requested
    failures: Number = 0  # in a row
    retry_at: MaybeMoment = None  # nothing is sent before
    last_error: str | None = None
    last_push_at: MaybeMoment = None
    # start of the window in which notifications are counted and limited
    window_at: MaybeMoment = None
    pushed: Number = 0  # notifications in that window
    lease: MaybeNumber = None
    holder: MaybeNumber = None  # the process with the lease; see models/runtime/leases.py
    created_at: Moment
    updated_at: Moment


class PushKey(Row, table=True):
    """The key pair that identifies this platform to push services (RFC 8292): the only row."""

    __tablename__ = "push_keys"

    public: str  # base64url of the uncompressed point, as browsers need it
    private: str  # encrypted
    created_at: Moment


def heard(stream: Mapped[int]) -> ColumnElement[bool]:
    """Return SQL that is true if a stream has active push channels."""
    return exists().where(col(PushChannel.user_id) == stream, col(PushChannel.active))


def read(stream: Mapped[int]) -> Select[int]:
    """Return SQL for the lowest position that the active channels of a stream have read."""
    first = select(func.min(col(PushChannel.number)))
    return first.where(col(PushChannel.user_id) == stream, col(PushChannel.active))
