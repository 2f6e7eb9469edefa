"""Table of the security log: sign-ins and credential changes of users."""

from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    foreign_key,
    json_column,
)

# Kind of the task that sends a message to the user: resolvers/auth/security_messages.py


class SecurityEvent(RowWithId, table=True):
    """A security event. Equal events within six hours of the first one are one row."""

    __tablename__ = "auth_events"
    __table_args__ = (
        Index("ix_auth_events_user_id", "user_id", "created_at", "id"),
        Index("ix_auth_events_created_at", "created_at", "id"),
        Index("ix_auth_events_action", "action", "created_at", "id"),
        Index("ix_auth_events_ip_key", "ip_key", "created_at", "id"),
    )

    user_id: int | None = foreign_key("users.id", index=False, default=None)  # None: of no user
    fold: str = Field(unique=True)  # key of equal events; after its time, with the id of the row
    action: str  # such as authenticate, totp enable, password change, act as
    result: str  # success, fail, disabled, suspended
    protocol: str | None = None
    ip: str | None = None
    ip_key: str | None = None  # 32 hex digits of IPv6: networks are ranges of these
    session_id: str | None = None
    by: str | None = None  # the administrator, if it was not the user
    by_id: OptionalInt64 = None
    detail: dict[str, Any] | None = json_column()
    count: Int64 = 1
    created_at: Timestamp
    last_at: Timestamp
    told_at: OptionalTimestamp = None  # when the last journal entry about it was written
