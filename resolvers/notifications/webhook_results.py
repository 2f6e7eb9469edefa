"""Record the result of a post: the next attempt of the delivery and the health of its webhook."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    select,
    update,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.notifications.webhooks import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookLane,
)
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.notifications.webhook_lanes import TEST_STREAM_ID, LeasedLane, WebhookLeaseLost
from resolvers.notifications.webhook_posts import PostResult

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 12
RETRY_DELAYS = tuple(
    timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 7200, 10800, 14400, 14400, 14400)
)
JITTER = 0.2  # of the delay, more or less
FAILURES_BEFORE_PAUSE = 5  # consecutive; after that only one attempt at a time
HTTP_GONE = 410
SUCCESS_WRITE_INTERVAL = timedelta(seconds=10)  # between two updates after successes
EXPIRED_RESULT = PostResult(None, "The event expired before the webhook accepted it.", 0)


@dataclass(frozen=True, slots=True)
class WebhookPost:
    """A delivery that is being posted."""

    lane: LeasedLane
    webhook: ColumnRow
    delivery: ColumnRow


def retry_delay(attempts: int, random_fraction: float) -> timedelta:
    """Return the delay after a number of attempts, varied by 20 %.

    `random_fraction` is from 0 up to 1.
    """
    base_delay = RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1]
    return base_delay * (1 - JITTER + 2 * JITTER * random_fraction)


async def require_lease_store_result_return_retry_at(
    environment: Environment, post_of_delivery: WebhookPost, result: PostResult
) -> datetime | None:
    """Write the result of a post.

    Returns the time of the next attempt, or None if there is none.
    """
    was_posted = result is not EXPIRED_RESULT
    is_test = post_of_delivery.lane.stream_id == TEST_STREAM_ID
    attempt = post_of_delivery.delivery.attempt + was_posted
    retry_at = environment.now() + retry_delay(max(attempt, 1), _random_fraction(environment))
    is_final = (
        attempt >= MAX_ATTEMPTS
        or retry_at >= post_of_delivery.delivery.expires_at
        or not was_posted
        or is_test
    )
    state = (
        WebhookDeliveryState.DELIVERED
        if result.is_success
        else WebhookDeliveryState.FAILED
        if is_final
        else WebhookDeliveryState.PENDING
    )
    is_waiting = state is WebhookDeliveryState.PENDING
    values = {
        "state": state,
        "attempt": attempt,
        "error": result.error,
        "next_attempt_at": retry_at if is_waiting else None,
    }
    if was_posted:
        values |= {"status": result.status, "duration": round(1000 * result.duration)}
    async with environment.write_session() as session:
        # first the webhook, in the lock order of its deletion
        connection = await session.connection()
        webhook_statement = select(col(Webhook.id)).where(
            col(Webhook.id) == post_of_delivery.webhook.id
        )
        await connection.execute(webhook_statement.with_for_update(read=True, key_share=True))
        statement = (
            select(col(WebhookLane.lease))
            .where(post_of_delivery.lane.is_leased_sql)
            .with_for_update()
        )
        if not (await connection.execute(statement)).first():
            raise WebhookLeaseLost
        delivery_update = update(WebhookDelivery).where(
            col(WebhookDelivery.id) == post_of_delivery.delivery.id
        )
        await connection.execute(delivery_update.values(values))
        if result.is_success or (was_posted and not is_test):
            await _store_success_or_pause_or_disable_webhook(
                environment, session, post_of_delivery.webhook, result
            )
    if state is WebhookDeliveryState.FAILED:
        facts = {"webhook": post_of_delivery.webhook.id, "delivery": post_of_delivery.delivery.id}
        log.warning("Webhook delivery failed", extra=facts)
    return retry_at if is_waiting else None


def _random_fraction(environment: Environment) -> float:
    """Return a random number from 0 to below 1, for the jitter of retry delays."""
    return int.from_bytes(environment.random_bytes(2)) / 0x10000


async def _store_success_or_pause_or_disable_webhook(
    environment: Environment, session: AsyncSession, webhook: ColumnRow, result: PostResult
) -> None:
    """Record success or failure of a webhook.

    One that is gone is switched off; a failing one pauses.

    A success is written at most every ten seconds, unless a post has failed before.
    """
    statement, now = update(Webhook).where(col(Webhook.id) == webhook.id), environment.now()
    connection = await session.connection()
    if result.is_success:
        last_success = col(Webhook.last_delivery_at)
        needs_write = (
            last_success.is_(None)
            | (last_success <= now - SUCCESS_WRITE_INTERVAL)
            | (col(Webhook.failures) > 0)
        )
        success_values = {"failures": 0, "retry_at": None, "last_delivery_at": now}
        await connection.execute(statement.where(needs_write).values(success_values))
        return
    pause_count = webhook.failures + 1 - FAILURES_BEFORE_PAUSE
    values: dict[str, Any] = {"failures": Webhook.failures + 1}
    if pause_count >= 0:
        values["retry_at"] = now + retry_delay(pause_count + 1, _random_fraction(environment))
    if result.status == HTTP_GONE:
        values["active"] = False
    await connection.execute(statement.values(values))
