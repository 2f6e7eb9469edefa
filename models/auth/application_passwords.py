"""Table of application passwords."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    OptionalInt64,
    OptionalTimestamp,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    json_column,
)


class ApplicationPassword(UserOwnedRow, table=True):
    """A password for one mail program. Its selector finds it, so that one hash is checked."""

    __tablename__ = "application_passwords"
    __table_args__ = (
        Index("uq_application_passwords_selector", "user_id", "selector", unique=True),
    )

    description: str
    selector: str  # of the password: five hex digits of its SHA-256
    password: str  # Argon2id, PHC form
    scopes: list[str] = json_column(list)
    active: bool = True
    ttl: OptionalInt64 = None  # seconds after the last use until it expires
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
    last_used_at: OptionalTimestamp = None
    last_used_ip: str | None = None
    last_event_id: OptionalInt64 = None  # the last entry of the security log about it
    made_by: OptionalInt64 = None  # the administrator who made it for its user
    made_by_key: OptionalInt64 = None  # the API key without a user that made it
    maker: str | None = None  # the maker's name; None: the user made it
    created_at: Timestamp
    updated_at: OptionalTimestamp = None
