"""Post webhook deliveries in order, each webhook at the speed of its receiver."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from sqlalchemy import (
    exists,
    or_,
    select,
)
from sqlmodel import col

from mail.network.outbound_http import (
    NetworkPolicy,
)
from models.events.wakeups import WEBHOOKS, wait_for_any_event_or_timeout
from models.notifications.webhooks import (
    Webhook,
    WebhookLane,
)
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import select_columns
from resolvers.notifications.webhook_cleanup import delete_all_but_newest_deliveries
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_lanes import (
    MIN_WAIT_SECONDS,
    POLL_SECONDS,
    LeasedLane,
    WebhookLeaseLost,
    is_due_unleased_lane_sql,
    lease_due_lanes,
    read_waiting_deliveries,
    release_lanes,
    release_or_delete_lane,
    seconds_until_lane_due,
)
from resolvers.notifications.webhook_posts import BodyBuilder, post_event_to_webhook
from resolvers.notifications.webhook_results import (
    EXPIRED_RESULT,
    FAILURES_BEFORE_PAUSE,
    WebhookPost,
    require_lease_store_result_return_retry_at,
)

log = logging.getLogger(__name__)
PAUSE_AFTER_ERROR = 20.0  # seconds until a lane is retried after an exception
MAX_LANES = 100  # of one process
MAX_LANES_PER_WEBHOOK = 4  # of one webhook
SWEEP_SECONDS = 60.0  # between two deletions of old deliveries


@dataclass
class WebhookWorker:
    """The state of the webhook worker of this process."""

    environment: Environment
    build_body: BodyBuilder
    network_policy: NetworkPolicy
    lanes: dict[LeasedLane, "asyncio.Task[None]"] = field(default_factory=dict)
    lane_freed: asyncio.Event = field(default_factory=asyncio.Event)
    last_sweep: float | None = None  # monotonic seconds
    has_webhooks: bool = True  # without webhooks, wake-ups cause no statements


async def run_webhook_worker_until_stopped(
    environment: Environment, build_body: BodyBuilder, network_policy: NetworkPolicy | None = None
) -> None:
    """Create webhook deliveries from the journal and post them, until cancelled or stopped.

    A stopped worker finishes the posts that it has begun.
    """
    worker = WebhookWorker(
        environment, build_body, network_policy or NetworkPolicy.from_options(environment.options)
    )
    async with leases.keep_process_registered(environment):
        await _post_deliveries_until_worker_stops(worker)


async def _post_deliveries_until_worker_stops(worker: WebhookWorker) -> None:
    last_full_read, environment = -POLL_SECONDS, worker.environment
    with environment.wakeups.follow_all_streams() as wakeup:
        try:
            while not is_worker_stopping():
                grown_stream_ids, pause = wakeup.take_streams(), POLL_SECONDS
                if monotonic() - last_full_read >= POLL_SECONDS:  # wake-ups can be lost
                    last_full_read = monotonic()
                    pause = await _create_deliveries_and_start_lanes(worker, None)
                elif worker.has_webhooks or worker.lanes or WEBHOOKS in grown_stream_ids:
                    pause = await _create_deliveries_and_start_lanes(worker, grown_stream_ids)
                await wait_for_any_event_or_timeout(
                    (wakeup, worker.lane_freed),
                    min(pause, last_full_read + POLL_SECONDS - monotonic()),
                )
            await asyncio.gather(*worker.lanes.values(), return_exceptions=True)
        finally:
            await _cancel_lane_tasks_and_release_leases(worker)


async def _create_deliveries_and_start_lanes(
    worker: WebhookWorker, stream_ids: set[int] | None
) -> float:
    """Create deliveries and start lanes, log errors, and return the pause in seconds."""
    try:
        if stream_ids is None or stream_ids:
            worker.has_webhooks = await create_deliveries_if_webhooks_active(
                worker.environment, stream_ids
            )
        await _delete_all_but_newest_if_due(worker)
        return await start_lanes_returning_pause(worker)
    except Exception:  # the worker must survive an outage of the database
        log.exception("Could not look for webhooks to serve")
        return POLL_SECONDS


async def start_lanes_returning_pause(worker: WebhookWorker) -> float:
    """Start to post from due lanes; returns the seconds until the next call."""
    worker.lane_freed.clear()  # before the read, so that a lane freed after it wakes the worker
    environment, now = worker.environment, worker.environment.now()
    lane_counts = Counter(lane.webhook_id for lane in worker.lanes)
    full_webhook_ids = [
        key for key, lane_count in lane_counts.items() if lane_count >= MAX_LANES_PER_WEBHOOK
    ]
    if len(worker.lanes) >= MAX_LANES:
        return POLL_SECONDS
    ready_webhooks = select(*select_columns(Webhook, ("id", "failures"))).where(
        or_(col(Webhook.retry_at).is_(None), col(Webhook.retry_at) <= now),
        col(Webhook.id).not_in(full_webhook_ids),
        exists().where(
            col(WebhookLane.webhook_id) == col(Webhook.id), is_due_unleased_lane_sql(now)
        ),
    )
    hooks = await environment.database.read(
        ready_webhooks.order_by(col(Webhook.id)).limit(MAX_LANES)
    )
    for hook in hooks:
        max_lanes = 1 if hook.failures >= FAILURES_BEFORE_PAUSE else MAX_LANES_PER_WEBHOOK
        for lane in await lease_due_lanes(environment, hook.id, max_lanes - lane_counts[hook.id]):
            worker.lanes[lane] = asyncio.create_task(_serve_lane(worker, lane))
    if len(hooks) == MAX_LANES:
        return MIN_WAIT_SECONDS
    return await seconds_until_lane_due(environment, full_webhook_ids)


async def _serve_lane(worker: WebhookWorker, lane: LeasedLane) -> None:
    """Post from a lane and release it. Exceptions are logged."""
    try:
        with leases.protect_leases_in_use(worker.environment, lane.lease):
            due_at = await _post_until_failure_and_return_retry_at(worker, lane)
            await release_or_delete_lane(worker.environment, lane, due_at)
    except WebhookLeaseLost:
        log.warning("Lease passed to another worker", extra={"webhook": lane.webhook_id})
    except Exception:
        log.exception("Could not serve the webhook", extra={"webhook": lane.webhook_id})
        leases.end_lease_at_later_heartbeat(
            worker.environment, WebhookLane, lane.is_leased_sql, delay_seconds=PAUSE_AFTER_ERROR
        )
    finally:
        worker.lanes.pop(lane, None)
        worker.lane_freed.set()


async def _post_until_failure_and_return_retry_at(
    worker: WebhookWorker, lane: LeasedLane
) -> datetime | None:
    """Post until the lane is empty or a post fails.

    Returns when to continue; None means at once.
    """
    environment = worker.environment
    while True:
        webhook, deliveries = await read_waiting_deliveries(environment, lane)
        if webhook is None or not deliveries:
            return None
        for row in deliveries:
            if is_worker_stopping():
                return None
            post_of_delivery = WebhookPost(lane, webhook, row)
            next_attempt_at: datetime | None = row.next_attempt_at
            if next_attempt_at and next_attempt_at > environment.now():
                return next_attempt_at
            if row.expires_at <= environment.now():
                await require_lease_store_result_return_retry_at(
                    environment, post_of_delivery, EXPIRED_RESULT
                )
                continue
            result = await post_event_to_webhook(
                environment, worker.network_policy, worker.build_body, webhook, row
            )
            environment.reach_fault_point("posted")
            retry_at = await require_lease_store_result_return_retry_at(
                environment, post_of_delivery, result
            )
            if not result.is_success:
                return retry_at


async def _cancel_lane_tasks_and_release_leases(worker: WebhookWorker) -> None:
    """Cancel the tasks of all lanes and release the lanes, so that other processes continue."""
    lanes = dict(worker.lanes)
    for task in lanes.values():
        task.cancel()
    await asyncio.gather(*lanes.values(), return_exceptions=True)
    try:
        await release_lanes(worker.environment, lanes)
    except Exception:  # the leases end with the process registration
        log.exception("Could not release the webhooks")


async def _delete_all_but_newest_if_due(worker: WebhookWorker) -> None:
    """Delete old deliveries, unless it was done within the last minute."""
    if worker.last_sweep is None or monotonic() >= worker.last_sweep + SWEEP_SECONDS:
        worker.last_sweep = monotonic()
        await delete_all_but_newest_deliveries(worker.environment)
