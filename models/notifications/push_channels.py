"""Push channels: where users are told of mail that comes, and how far it has been told."""

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
    """By which service a user is told."""

    PUSHOVER = "PUSHOVER"
    WEB_PUSH = "WEB_PUSH"
    HTTP = "HTTP"


class PushChannel(Owned, table=True):
    """Where a user is told of new mail: one of each kind.

    It is read from the journal of the account, behind `number`; whoever holds the lease tells it.
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
    target: str  # sealed JSON: key, token, endpoint
    title: str | None = None
    text: str | None = None
    senders: list[str] = plain(list)
    senders_regex: str | None = None
    only_priority: bool = False
    evaluate_priority: bool = False
    mailboxes: list[int] = plain(list)
    number: Number = 0  # up to here the journal has been told
    test_at: MaybeMoment = None  # a sample is asked for since
    failures: Number = 0  # in a row
    retry_at: MaybeMoment = None  # nothing is posted before
    last_error: str | None = None
    last_push_at: MaybeMoment = None
    window_at: MaybeMoment = None  # since when pushes are counted, to hold a storm back
    pushed: Number = 0  # since then
    lease: MaybeNumber = None
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py
    created_at: Moment
    updated_at: Moment


class PushKey(Row, table=True):
    """The pair of keys by which push services know this platform (RFC 8292): the only row."""

    __tablename__ = "push_keys"

    public: str  # base64url of the point, uncompressed, as browsers want it
    private: str  # sealed
    created_at: Moment


def heard(stream: Mapped[int]) -> ColumnElement[bool]:
    """SQL: whether a stream is read for any channel that is active."""
    return exists().where(col(PushChannel.user_id) == stream, col(PushChannel.active))


def read(stream: Mapped[int]) -> Select[int]:
    """SQL: which event of a stream was read last for all of its channels that are active."""
    first = select(func.min(col(PushChannel.number)))
    return first.where(col(PushChannel.user_id) == stream, col(PushChannel.active))
