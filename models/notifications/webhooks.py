"""Webhooks: where events are posted, how far the journal has been read for them, what waits."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Index,
    Select,
    and_,
    exists,
    insert,
    or_,
    select,
    text,
)
from sqlalchemy.orm import Mapped
from sqlmodel import Field, SQLModel, col

from models.events.journal import PLATFORM
from models.store.columns import (
    Big,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Row,
    choice,
    insert_or,
    lease_index,
    plain,
    ref,
    table_of,
)
from models.users.tables import User

TRIED_FOR = timedelta(days=1)


class PostState(StrEnum):
    """How far a post has come."""

    WAITING = "WAITING"
    DONE = "DONE"
    DEAD = "DEAD"  # given up


class Webhook(Row, table=True):
    """Where events are posted: those of an account, of a domain, or, with neither, of all.

    With both they are those of the account as long as it is of the domain.
    """

    __tablename__ = "webhooks"

    user_id: int | None = ref("users.id", default=None)
    domain_id: int | None = ref("domains.id", default=None)
    types: list[str] = plain(list)
    url: str
    active: bool = True
    secret: str  # sealed, like the next
    old_secret: str | None = None  # signs beside the new one
    old_until: MaybeMoment = None
    since: Moment  # what happened before is none of its
    failures: Number = 0  # in a row
    retry_at: MaybeMoment = None  # nothing is posted before
    last_delivery_at: MaybeMoment = None
    created_at: Moment


def wide() -> ColumnElement[bool]:
    """SQL: webhooks for all there is."""
    return col(Webhook.user_id).is_(None) & col(Webhook.domain_id).is_(None)


def narrow(stream: Mapped[int]) -> ColumnElement[bool]:
    """SQL: whether a stream may tell of what active webhooks of accounts and domains are for."""
    active = col(Webhook.active)
    users = select(col(Webhook.user_id)).where(active, col(Webhook.user_id).is_not(None))
    domains = select(col(Webhook.domain_id)).where(
        active, col(Webhook.domain_id).is_not(None), col(Webhook.user_id).is_(None)
    )
    homes = select(col(User.domain_id)).where(
        col(User.id).in_(users), col(User.domain_id).is_not(None)
    )
    people = select(col(User.id)).where(col(User.domain_id).in_(domains))
    some = (stream.in_(each) for each in (users, domains, homes, people))
    return or_(stream == PLATFORM, *some)


def heard(stream: Mapped[int]) -> ColumnElement[bool]:
    """SQL: whether a stream is read for any webhook that is active."""
    active = col(Webhook.active)
    return or_(exists().where(active, wide()), and_(exists().where(active), narrow(stream)))


class WebhookFeed(SQLModel, table=True):
    """How far a stream of the journal has been read for webhooks; no row: not at all."""

    __tablename__ = "webhook_feeds"

    stream_id: int = ref("streams.id", primary_key=True, index=False)
    number: Number = 0


class WebhookLane(SQLModel, table=True):
    """What waits for one webhook of one stream: posted in order, by whoever holds the lease."""

    __tablename__ = "webhook_lanes"
    __table_args__ = (
        Index("webhook_lanes_due", "webhook_id", "due_at"),
        lease_index("webhook_lanes"),
    )

    webhook_id: int = ref("webhooks.id", primary_key=True, index=False)
    stream_id: int = Field(primary_key=True, sa_type=Big)  # the stream itself may be gone
    due_at: Moment
    lease: MaybeNumber = None
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py


class WebhookDelivery(Row, table=True):
    """An event for a webhook, and what came of posting it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(
            "webhook_deliveries_waiting",
            "webhook_id",
            "stream_id",
            "number",
            "id",
            sqlite_where=text("state = 'WAITING'"),
            postgresql_where=text("state = 'WAITING'"),
        ),
        Index("webhook_deliveries_log", "webhook_id", "id"),
        Index("webhook_deliveries_ended", "webhook_id", "state", "id"),
    )

    webhook_id: int = ref("webhooks.id", index=False)
    stream_id: int = Field(sa_type=Big)
    number: Number  # in the stream
    event: str  # the same in each try, each replay, and for each webhook
    type: str
    at: Moment  # when it happened
    body: dict[str, Any] = plain(dict)  # what it was, with our keys
    state: PostState = choice(PostState, default=PostState.WAITING)
    attempt: Number = 0
    status: MaybeNumber = None
    error: str | None = None
    duration: MaybeNumber = None  # milliseconds of the last try
    expires_at: Moment  # given up then
    next_attempt_at: MaybeMoment = None


def read(stream: Mapped[int]) -> Select[int]:
    """SQL: which event of a stream was read last for webhooks."""
    return select(col(WebhookFeed.number)).where(col(WebhookFeed.stream_id) == stream)


def put(connection: Connection, now: datetime, rows: Sequence[dict[str, Any]]) -> None:
    """Store deliveries, each at the end of its lane; not of webhooks that are deleted meanwhile."""
    lanes = sorted({(row["webhook_id"], row["stream_id"]) for row in rows})
    there = {key for key, _ in lanes}
    living = select(col(Webhook.id)).where(col(Webhook.id).in_(there)).order_by(col(Webhook.id))
    living = living.with_for_update(read=True, key_share=True)
    left = set(connection.execute(living).scalars())
    rows = [row for row in rows if row["webhook_id"] in left]
    if not rows:
        return
    connection.execute(insert(WebhookDelivery), rows)
    new = insert_or(connection.dialect.name, WebhookLane)
    same = {"due_at": table_of(WebhookLane).c.due_at}  # it may wait for another try
    connection.execute(
        new.on_conflict_do_update(index_elements=["webhook_id", "stream_id"], set_=same),
        [
            {"webhook_id": webhook, "stream_id": stream, "due_at": now}
            for webhook, stream in lanes
            if webhook in left
        ],
    )
