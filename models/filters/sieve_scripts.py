"""Scripts in Sieve, and what they remember."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Index, UniqueConstraint, exists, text
from sqlmodel import Field, SQLModel, col

from models.store.columns import (
    ByBytes,
    Instant,
    MaybeMoment,
    Moment,
    Number,
    Owned,
    choice,
    plain,
    ref,
)


class SieveScript(Owned, table=True):
    """A script of an account. One of them, at most, runs: others it may include."""

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

    name: str = Field(sa_type=ByBytes)
    content: str
    size: Number  # bytes of the content
    active: bool = False
    requires: list[str] = plain(list)  # extensions it uses
    last_error: str | None = None  # of a run since it is as it is
    last_error_at: MaybeMoment = None
    created_at: Moment
    updated_at: Moment


class MemoryKind(StrEnum):
    """What is remembered."""

    VACATION = "VACATION"  # whom a script has answered
    DUPLICATE = "DUPLICATE"  # what has come


class SieveMemory(SQLModel, table=True):
    """What the scripts of an account have to know of mail that came before."""

    __tablename__ = "sieve_memories"

    user_id: int = ref("users.id", primary_key=True, index=False)
    kind: MemoryKind = choice(MemoryKind, primary_key=True)
    key: str = Field(primary_key=True)  # a digest
    receipt: str  # of the delivery that has left it: a repeat of that is none of its own
    until: datetime = Field(sa_type=Instant, index=True)


def scripted(owner: Any) -> ColumnElement[bool]:
    """SQL: whether a script of this account runs."""
    return exists().where(col(SieveScript.user_id) == owner, col(SieveScript.active))
