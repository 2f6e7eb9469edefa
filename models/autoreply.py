"""What is answered by itself while somebody is away, and who has had such an answer."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, bindparam, exists, or_
from sqlmodel import Field, SQLModel, col

from models.store.columns import Instant, MaybeMoment, MaybeNumber, Moment, Row, plain, ref


class Autoreply(Row, table=True):
    """The answer of an account, or of an address. Its id is that of whose it is."""

    __tablename__ = "autoreplies"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (address_id IS NULL)", name="one_owner"),
    )

    user_id: int | None = ref("users.id", default=None)
    address_id: int | None = ref("addresses.id", default=None)
    enabled: bool = False
    name: str | None = None  # in From; None: the account's
    subject: str = ""  # "": that of what is answered
    text: str = ""
    html: str = ""
    internal_subject: str | None = None  # to senders of the own domain; None: as to all
    internal_text: str | None = None
    internal_html: str | None = None
    starts_at: MaybeMoment = None  # None: at once
    ends_at: MaybeMoment = None  # None: without end
    interval: MaybeNumber = None  # seconds between two answers to a sender; None: the platform's
    addresses: list[int] = plain(list)  # keys: only mail to these is answered; none: to any
    created_at: Moment
    updated_at: Moment


class AutoreplySender(SQLModel, table=True):
    """Who had an answer, and until when there is no other."""

    __tablename__ = "autoreply_senders"

    autoreply_id: int = ref("autoreplies.id", primary_key=True, index=False)
    sender: str = Field(primary_key=True)  # as compared: mail/autoreply/decision.py
    until: datetime = Field(sa_type=Instant, index=True)


def answering(owner: Any) -> ColumnElement[bool]:
    """SQL: whether mail to this account, or address, is answered at `now`."""
    now = bindparam("now", type_=Instant)
    return exists().where(
        col(Autoreply.id) == owner,
        col(Autoreply.enabled),
        or_(col(Autoreply.starts_at).is_(None), col(Autoreply.starts_at) <= now),
        or_(col(Autoreply.ends_at).is_(None), col(Autoreply.ends_at) > now),
    )
