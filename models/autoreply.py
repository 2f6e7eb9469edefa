"""Tables of autoreplies and of the senders who got one."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, bindparam, exists, or_
from sqlmodel import Field, SQLModel, col

from models.store.columns import Instant, MaybeMoment, MaybeNumber, Moment, Row, plain, ref


class Autoreply(Row, table=True):
    """The autoreply of a user or an address. Its id is that of the owner."""

    __tablename__ = "autoreplies"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (address_id IS NULL)", name="one_owner"),
    )

    user_id: int | None = ref("users.id", default=None)
    address_id: int | None = ref("addresses.id", default=None)
    enabled: bool = False
    name: str | None = None  # in From; None: the user's
    subject: str = ""  # "": that of the message replied to
    text: str = ""
    html: str = ""
    internal_subject: str | None = None  # for senders of the same domain; None: as for all
    internal_text: str | None = None
    internal_html: str | None = None
    starts_at: MaybeMoment = None  # None: now
    ends_at: MaybeMoment = None  # None: never
    interval: MaybeNumber = None  # seconds between two replies to a sender; None: the platform's
    addresses: list[int] = plain(list)  # ids: only mail to these gets a reply; empty: to any
    created_at: Moment
    updated_at: Moment


class AutoreplySender(SQLModel, table=True):
    """A sender who got a reply, and the time until which there is no other."""

    __tablename__ = "autoreply_senders"

    autoreply_id: int = ref("autoreplies.id", primary_key=True, index=False)
    sender: str = Field(primary_key=True)  # normal form: mail/autoreply/decision.py
    until: datetime = Field(sa_type=Instant, index=True)


def answering(owner: Any) -> ColumnElement[bool]:
    """Return SQL that is true if mail to this user or address gets a reply at `now`."""
    now = bindparam("now", type_=Instant)
    return exists().where(
        col(Autoreply.id) == owner,
        col(Autoreply.enabled),
        or_(col(Autoreply.starts_at).is_(None), col(Autoreply.starts_at) <= now),
        or_(col(Autoreply.ends_at).is_(None), col(Autoreply.ends_at) > now),
    )
