"""Lanes of webhooks: the deliveries of one webhook and stream, which one process posts in order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    delete,
    or_,
    select,
    tuple_,
    update,
)
from sqlmodel import col

from models.notifications.webhooks import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookLane,
)
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns

TEST_STREAM_ID = -1  # the lane of test calls has no stream
POLL_SECONDS = 15.0  # between two reads without a wake-up
MIN_WAIT_SECONDS = 0.05  # another worker can hold what is due
BATCH_SIZE = 20  # deliveries of a lane in one statement


@dataclass(frozen=True, slots=True)
class LeasedLane:
    """The lane of a webhook and stream that this process holds a lease of."""

    webhook_id: int
    stream_id: int
    lease: int

    @property
    def is_leased_sql(self) -> ColumnElement[bool]:
        """Return the SQL condition for the lane while the lease is held."""
        return (
            (col(WebhookLane.webhook_id) == self.webhook_id)
            & (col(WebhookLane.stream_id) == self.stream_id)
            & (col(WebhookLane.lease) == self.lease)
        )


class WebhookLeaseLost(Exception):
    """Another process posts from this lane."""


def _is_active_or_test_lane_sql() -> ColumnElement[bool]:
    """Return the SQL condition for lanes of active webhooks and for test lanes."""
    return or_(col(Webhook.active), col(WebhookLane.stream_id) == TEST_STREAM_ID)


def is_due_unleased_lane_sql(now: datetime) -> ColumnElement[bool]:
    """Return the SQL condition for lanes that are due and that no process posts from."""
    return (
        (col(WebhookLane.due_at) <= now)
        & leases.is_unleased(WebhookLane)
        & _is_active_or_test_lane_sql()
    )


async def seconds_until_lane_due(
    environment: Environment, full_webhook_ids: Sequence[int]
) -> float:
    """Return the seconds until the next lane is due."""
    now = environment.now()
    is_free = (col(WebhookLane.webhook_id) == col(Webhook.id), col(WebhookLane.lease).is_(None))
    soonest = (
        select(col(WebhookLane.due_at))
        .where(*is_free, _is_active_or_test_lane_sql())
        .order_by(col(WebhookLane.due_at))
        .limit(1)
        .scalar_subquery()
    )
    statement = select(soonest.label("due_at"), col(Webhook.retry_at))
    rows = await environment.database.read(
        statement.where(col(Webhook.id).not_in(full_webhook_ids))
    )
    due_times: list[datetime] = [
        max(row.due_at, row.retry_at or row.due_at) for row in rows if row.due_at
    ]
    if not due_times:
        return POLL_SECONDS
    return min(max((min(due_times) - now).total_seconds(), MIN_WAIT_SECONDS), POLL_SECONDS)


async def lease_due_lanes(
    environment: Environment, webhook_id: int, max_lanes: int
) -> list[LeasedLane]:
    """Claim due lanes of a webhook that no process holds."""
    if max_lanes <= 0:
        return []
    now, lease = environment.now(), environment.new_id()
    process_id = await leases.ensure_process_registered(environment)
    lane_columns = (col(WebhookLane.webhook_id), col(WebhookLane.stream_id))
    statement = (
        select(*lane_columns)
        .join(Webhook, col(Webhook.id) == col(WebhookLane.webhook_id))
        .where(col(WebhookLane.webhook_id) == webhook_id, is_due_unleased_lane_sql(now))
        .where(leases.is_registered(process_id))
        .order_by(col(WebhookLane.due_at), col(WebhookLane.stream_id))
        .limit(max_lanes)
        .with_for_update(skip_locked=True, of=WebhookLane)
    )
    async with environment.write_session() as session:
        connection = await session.connection()
        keys = [tuple(row) for row in (await connection.execute(statement)).all()]
        if keys:
            claim_statement = update(WebhookLane).where(tuple_(*lane_columns).in_(keys))
            await connection.execute(
                claim_statement.values(**leases.lease_values(process_id, lease))
            )
    return [LeasedLane(webhook, stream, lease) for webhook, stream in keys]


class WaitingDeliveries(NamedTuple):
    """The next deliveries of a lane."""

    webhook: ColumnRow | None  # None if it was deleted or switched off
    deliveries: Sequence[ColumnRow]


async def read_waiting_deliveries(environment: Environment, lane: LeasedLane) -> WaitingDeliveries:
    """Read the webhook of a lane and its next deliveries.

    `webhook` of the result is None if the webhook was deleted or is switched off. A lane of tests
    also uses one that is switched off.
    """
    statement = select(*select_columns(Webhook)).where(col(Webhook.id) == lane.webhook_id)
    if lane.stream_id != TEST_STREAM_ID:
        statement = statement.where(col(Webhook.active))
    hook = next(iter(await environment.database.read(statement)), None)
    rows = select(*select_columns(WebhookDelivery)).where(_is_waiting_in_lane(lane))
    order = (col(WebhookDelivery.number), col(WebhookDelivery.id))
    return WaitingDeliveries(
        hook, await environment.database.read(rows.order_by(*order).limit(BATCH_SIZE))
    )


def _is_waiting_in_lane(lane: LeasedLane) -> ColumnElement[bool]:
    return (
        (col(WebhookDelivery.webhook_id) == lane.webhook_id)
        & (col(WebhookDelivery.stream_id) == lane.stream_id)
        & (col(WebhookDelivery.state) == WebhookDeliveryState.PENDING)
    )


async def release_or_delete_lane(
    environment: Environment, lane: LeasedLane, due_at_or_now: datetime | None
) -> None:
    """Release a lane until `due_at_or_now` (None: due at once), or delete it if it is empty."""
    async with environment.write_session() as session:
        connection = await session.connection()
        statement = select(col(WebhookLane.stream_id)).where(lane.is_leased_sql).with_for_update()
        if not (await connection.execute(statement)).first():
            return
        waiting_statement = (
            select(col(WebhookDelivery.id)).where(_is_waiting_in_lane(lane)).limit(1)
        )
        if (
            await connection.execute(waiting_statement)
        ).first():  # read under the lock, so that no delivery is added before the update
            released = {"lease": None, "holder": None, "due_at": due_at_or_now or environment.now()}
            await connection.execute(update(WebhookLane).where(lane.is_leased_sql).values(released))
        else:
            await connection.execute(delete(WebhookLane).where(lane.is_leased_sql))


async def release_lanes(environment: Environment, lanes: Iterable[LeasedLane]) -> None:
    """Release lanes, so that other processes can post from them at once."""
    for lane in lanes:
        async with environment.write_session() as session:
            released = {"lease": None, "holder": None}
            await (await session.connection()).execute(
                update(WebhookLane).where(lane.is_leased_sql).values(released)
            )
