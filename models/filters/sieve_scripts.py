"""Tables of Sieve scripts and of their data about earlier mail."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Index, UniqueConstraint, exists, text
from sqlmodel import Field, SQLModel, col

from models.store.columns import (
    BYTEWISE_TEXT,
    Int64,
    OptionalTimestamp,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    enum_column,
    foreign_key,
    json_column,
)


class SieveScript(UserOwnedRow, table=True):
    """A script of a user. At most one is active; it can include others."""

    __tablename__ = "sieve_scripts"
    __table_args__ = (
        UniqueConstraint("user_id", "name"),
        Index(
            "uq_sieve_scripts_active",
            "user_id",
            unique=True,
            sqlite_where=text("active"),
            postgresql_where=text("active"),
        ),
    )

    name: str = Field(sa_type=BYTEWISE_TEXT)
    content: str
    size: Int64  # bytes of the content
    active: bool = False
    requires: list[str] = json_column(list)  # extensions it uses
    last_error: str | None = None  # of a run of the current content
    last_error_at: OptionalTimestamp = None
    created_at: Timestamp
    updated_at: Timestamp


class SieveMemoryKind(StrEnum):
    """The kind of data that a script stores."""

    VACATION = "VACATION"  # senders who got a vacation reply
    DUPLICATE = "DUPLICATE"  # messages that were received


class SieveMemory(SQLModel, table=True):
    """Data of a user's scripts about earlier mail."""

    __tablename__ = "sieve_memories"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    kind: SieveMemoryKind = enum_column(SieveMemoryKind, primary_key=True)
    key: str = Field(primary_key=True)  # a digest
    receipt: str  # of the delivery that stored it: a repeat of that delivery ignores it
    until: datetime = Field(sa_type=UtcDateTime, index=True)


def has_active_script(user_id: Any) -> ColumnElement[bool]:
    """Return SQL that is true if the user has an active script."""
    return exists().where(col(SieveScript.user_id) == user_id, col(SieveScript.active))
