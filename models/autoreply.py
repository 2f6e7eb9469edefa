"""Tables of autoreplies and of the senders who got one."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, bindparam, exists, or_
from sqlmodel import Field, SQLModel, col

from models.store.columns import (
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UtcDateTime,
    foreign_key,
    json_column,
)


class Autoreply(RowWithId, table=True):
    """The autoreply of a user or an address. Its id is that of the owner."""

    __tablename__ = "autoreplies"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (address_id IS NULL)", name="one_owner"),
    )

    user_id: int | None = foreign_key("users.id", default=None)
    address_id: int | None = foreign_key("addresses.id", default=None)
    enabled: bool = False
    name: str | None = None  # in From; None: the user's
    subject: str = ""  # "": that of the message replied to
    text: str = ""
    html: str = ""
    internal_subject: str | None = None  # for senders of the same domain; None: as for all
    internal_text: str | None = None
    internal_html: str | None = None
    starts_at: OptionalTimestamp = None  # None: now
    ends_at: OptionalTimestamp = None  # None: never
    interval: OptionalInt64 = None  # seconds between two replies to a sender; None: the platform's
    addresses: list[int] = json_column(list)  # ids: only mail to these gets a reply; empty: to any
    created_at: Timestamp
    updated_at: Timestamp


class AutoreplySender(SQLModel, table=True):
    """A sender who got a reply, and the time until which there is no other."""

    __tablename__ = "autoreply_senders"

    autoreply_id: int = foreign_key("autoreplies.id", primary_key=True, index=False)
    sender: str = Field(primary_key=True)  # normal form: mail/autoreply/decision.py
    until: datetime = Field(sa_type=UtcDateTime, index=True)


def is_autoreply_active(owner_id: Any) -> ColumnElement[bool]:
    """Return SQL that is true if mail to this user or address gets a reply at `now`."""
    now = bindparam("now", type_=UtcDateTime)
    return exists().where(
        col(Autoreply.id) == owner_id,
        col(Autoreply.enabled),
        or_(col(Autoreply.starts_at).is_(None), col(Autoreply.starts_at) <= now),
        or_(col(Autoreply.ends_at).is_(None), col(Autoreply.ends_at) > now),
    )
