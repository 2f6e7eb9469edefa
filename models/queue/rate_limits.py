"""Tables of rate limits and of the messages that were counted."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.queue.rate_values import RatePeriod
from models.store.columns import (
    BIG_INTEGER,
    Int64,
    RowWithId,
    Timestamp,
    UtcDateTime,
    enum_column,
    foreign_key,
)
from models.users.tables import LimitSource


class RateLimit(RowWithId, table=True):
    """The rate limit of a user or domain, with the same id. Without a row the settings apply."""

    __tablename__ = "rate_limits"
    __table_args__ = (Index("rate_limits_by_age", "created_at", "id"),)

    user_id: int | None = foreign_key("users.id", default=None)
    domain_id: int | None = foreign_key("domains.id", default=None)
    messages: Int64 = 0  # 0: unlimited, in spite of the settings
    per: RatePeriod = enum_column(RatePeriod)
    created_at: Timestamp
    updated_at: Timestamp


class RateWindow(SQLModel, table=True):
    """The messages counted in the current window of a user, a domain, or the platform.

    There is no foreign key, so that counting does not wait for a transaction that locks a user.
    Windows that have ended are deleted.
    """

    __tablename__ = "rate_windows"

    id: int = Field(
        primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False}
    )
    per: RatePeriod = enum_column(RatePeriod)  # a window of another length is not used
    allowed: Int64  # the limit when the last message was counted
    used: Int64
    until: datetime = Field(sa_type=UtcDateTime, index=True)


class RateLimitHold(SQLModel, table=True):
    """A user who exceeded a rate limit, until the end of the window."""

    __tablename__ = "rate_limit_holds"
    __table_args__ = (Index("rate_limit_holds_by_age", "since", "id"),)

    id: int = foreign_key("users.id", primary_key=True, index=False)
    window_id: Int64  # the `RateWindow` that is full
    source: LimitSource = enum_column(LimitSource)  # of the limit
    messages: Int64
    per: RatePeriod = enum_column(RatePeriod)
    since: Timestamp
    until: Timestamp
    # the user gets no other notice before
    notified_until: datetime = Field(sa_type=UtcDateTime, index=True)
