"""Tables of webhooks, their read positions and their deliveries."""

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

from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    core_table,
    enum_column,
    foreign_key,
    insert_with_conflict,
    json_column,
    lease_index,
)
from models.users.tables import User

DELIVERY_LIFETIME = timedelta(days=1)


class WebhookDeliveryState(StrEnum):
    """The state of a webhook delivery."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"  # expired


class Webhook(RowWithId, table=True):
    """A URL that gets the events of a user, of a domain, or, with neither, of the platform.

    With both it gets the events of the user while the user is in the domain.
    """

    __tablename__ = "webhooks"

    user_id: int | None = foreign_key("users.id", default=None)
    domain_id: int | None = foreign_key("domains.id", default=None)
    types: list[str] | None = json_column()  # types of events; None: all
    url: str
    active: bool = True
    secret: str  # encrypted, like `old_secret`
    old_secret: str | None = None  # signs in addition to the new one
    old_until: OptionalTimestamp = None
    since: Timestamp  # earlier events are not delivered
    failures: Int64 = 0  # in a row
    retry_at: OptionalTimestamp = None  # nothing is posted before
    last_delivery_at: OptionalTimestamp = None
    # users.id of the last who created or updated it; None: a key of the platform, or unknown
    made_by: OptionalInt64 = None
    created_at: Timestamp


def is_platform_webhook() -> ColumnElement[bool]:
    """Return SQL that is true for webhooks that get all events."""
    return col(Webhook.user_id).is_(None) & col(Webhook.domain_id).is_(None)


def is_platform_stream_or_has_scoped_webhook(stream_id: Mapped[int]) -> ColumnElement[bool]:
    """Return SQL that is true if active webhooks of users or domains may need a stream."""
    active = col(Webhook.active)
    users = select(col(Webhook.user_id)).where(active, col(Webhook.user_id).is_not(None))
    domains = select(col(Webhook.domain_id)).where(
        active, col(Webhook.domain_id).is_not(None), col(Webhook.user_id).is_(None)
    )
    domains_of_users = select(col(User.domain_id)).where(
        col(User.id).in_(users), col(User.domain_id).is_not(None)
    )
    users_of_domains = select(col(User.id)).where(col(User.domain_id).in_(domains))
    selects = (users, domains, domains_of_users, users_of_domains)
    return or_(stream_id == PLATFORM, *(stream_id.in_(ids) for ids in selects))


def is_stream_covered_by_active_webhooks(stream_id: Mapped[int]) -> ColumnElement[bool]:
    """Return SQL that is true if any active webhook may need a stream."""
    active = col(Webhook.active)
    return or_(
        exists().where(active, is_platform_webhook()),
        and_(exists().where(active), is_platform_stream_or_has_scoped_webhook(stream_id)),
    )


class WebhookReadPosition(SQLModel, table=True):
    """The position up to which a stream was read for webhooks; no row: not read yet."""

    __tablename__ = "webhook_read_positions"

    stream_id: int = foreign_key("streams.id", primary_key=True, index=False)
    number: Int64 = 0


class WebhookLane(SQLModel, table=True):
    """The queue of a webhook for one stream. The process with the lease posts it in order."""

    __tablename__ = "webhook_lanes"
    __table_args__ = (
        Index("webhook_lanes_due", "webhook_id", "due_at"),
        lease_index("webhook_lanes"),
    )

    webhook_id: int = foreign_key("webhooks.id", primary_key=True, index=False)
    # the stream itself may be deleted
    stream_id: int = Field(primary_key=True, sa_type=BIG_INTEGER)
    due_at: Timestamp
    lease: OptionalInt64 = None
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py


class WebhookDelivery(RowWithId, table=True):
    """One event for one webhook, with its attempts."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(
            "webhook_deliveries_waiting",
            "webhook_id",
            "stream_id",
            "number",
            "id",
            sqlite_where=text("state = 'PENDING'"),
            postgresql_where=text("state = 'PENDING'"),
        ),
        Index("webhook_deliveries_log", "webhook_id", "id"),
        Index("webhook_deliveries_ended", "webhook_id", "state", "id"),
    )

    webhook_id: int = foreign_key("webhooks.id", index=False)
    stream_id: int = Field(sa_type=BIG_INTEGER)
    number: Int64  # position in the stream
    event: str  # id of the event: the same in each attempt, each replay, and for each webhook
    type: EventType = enum_column(EventType)
    at: Timestamp  # time of the event
    body: dict[str, Any] = json_column(dict)  # the event, with internal ids
    state: WebhookDeliveryState = enum_column(
        WebhookDeliveryState, default=WebhookDeliveryState.PENDING
    )
    attempt: Int64 = 0
    status: OptionalInt64 = None
    error: str | None = None
    duration: OptionalInt64 = None  # milliseconds of the last attempt
    expires_at: Timestamp  # no attempts after it
    next_attempt_at: OptionalTimestamp = None


def last_webhook_read_position(stream_id: Mapped[int]) -> Select[int]:
    """Return SQL for the position up to which a stream was read for webhooks."""
    return select(col(WebhookReadPosition.number)).where(
        col(WebhookReadPosition.stream_id) == stream_id
    )


def insert_deliveries_and_lanes_if_webhook_exists(
    connection: Connection, now: datetime, deliveries: Sequence[dict[str, Any]]
) -> None:
    """Insert deliveries at the end of their lanes, except those of webhooks that were deleted."""
    lanes = sorted({(row["webhook_id"], row["stream_id"]) for row in deliveries})
    webhook_ids = {key for key, _ in lanes}
    existing = (
        select(col(Webhook.id)).where(col(Webhook.id).in_(webhook_ids)).order_by(col(Webhook.id))
    )
    existing = existing.with_for_update(read=True, key_share=True)
    existing_ids = set(connection.execute(existing).scalars())
    deliveries = [row for row in deliveries if row["webhook_id"] in existing_ids]
    if not deliveries:
        return
    connection.execute(insert(WebhookDelivery), deliveries)
    new = insert_with_conflict(connection.dialect.name, WebhookLane)
    unchanged = {"due_at": core_table(WebhookLane).c.due_at}  # the lane may wait for a retry
    connection.execute(
        new.on_conflict_do_update(index_elements=["webhook_id", "stream_id"], set_=unchanged),
        [
            {"webhook_id": webhook, "stream_id": stream, "due_at": now}
            for webhook, stream in lanes
            if webhook in existing_ids
        ],
    )
