"""Post webhook deliveries in order, each webhook at the speed of its receiver."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    delete,
    exists,
    literal,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import (
    HttpRequestFailed,
    NetworkPolicy,
    parse_target,
    post,
    status_problem,
)
from models.errors import InvalidInput
from models.events.wakeups import WEBHOOKS, wait_for_any
from models.notifications.webhooks import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookLane,
)
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_signatures import signed_headers

log = logging.getLogger(__name__)

POST_RESULTS = metrics.counter(
    "merganser_webhook_posts", "Posts to webhooks, and what came.", "result"
)
POST_SECONDS = metrics.histogram("merganser_webhook_post_seconds", "Time of a post to a webhook.")
TEST_STREAM_ID = -1  # the lane of test calls has no stream
PAUSE_AFTER_ERROR = 20.0  # seconds until a lane is retried after an exception
POLL_SECONDS = 15.0  # between two reads without a wake-up
MIN_WAIT_SECONDS = 0.05  # another worker can hold what is due
MAX_LANES = 100  # of one process
MAX_LANES_PER_WEBHOOK = 4  # of one webhook
BATCH_SIZE = 20  # deliveries of a lane in one statement
MAX_ATTEMPTS = 12
RETRY_DELAYS = tuple(
    timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 7200, 10800, 14400, 14400, 14400)
)
JITTER = 0.2  # of the delay, more or less
FAILURES_BEFORE_PAUSE = 5  # consecutive; after that only one attempt at a time
HTTP_GONE = 410
MAX_STORED_DELIVERIES = 1000  # of a webhook in each final state
SWEEP_SECONDS = 60.0  # seconds
FINAL_STATES = (WebhookDeliveryState.DELIVERED, WebhookDeliveryState.FAILED)
SUCCESS_WRITE_INTERVAL = timedelta(seconds=10)  # between two updates after successes

BodyBuilder = Callable[[Any], dict[str, Any]]  # builds the JSON body of a delivery row


@dataclass(frozen=True, slots=True)
class ClaimedLane:
    """The lane of a webhook and stream that this process holds a lease of."""

    webhook_id: int
    stream_id: int
    lease: int

    @property
    def is_claimed(self) -> ColumnElement[bool]:
        """Return the SQL condition for the lane while the lease is held."""
        return (
            (col(WebhookLane.webhook_id) == self.webhook_id)
            & (col(WebhookLane.stream_id) == self.stream_id)
            & (col(WebhookLane.lease) == self.lease)
        )


@dataclass(frozen=True, slots=True)
class PostResult:
    """The result of a post."""

    status: int | None
    error: str | None
    duration: float  # seconds

    @property
    def is_success(self) -> bool:
        """True if the receiver has accepted the event."""
        return self.error is None


EXPIRED_RESULT = PostResult(None, "not taken in time", 0)


@dataclass(frozen=True, slots=True)
class WebhookPost:
    """A delivery that is being posted."""

    lane: ClaimedLane
    webhook: ColumnRow
    delivery: ColumnRow


class WebhookLeaseLost(Exception):
    """Another process posts from this lane."""


@dataclass
class WebhookWorker:
    """The state of the webhook worker of this process."""

    environment: Environment
    build_body: BodyBuilder
    gate: NetworkPolicy
    lanes: dict[ClaimedLane, "asyncio.Task[None]"] = field(default_factory=dict)
    lane_freed: asyncio.Event = field(default_factory=asyncio.Event)
    last_sweep: float | None = None  # monotonic seconds
    has_webhooks: bool = True  # without webhooks, wake-ups cause no statements


async def run_worker(
    environment: Environment, build_body: BodyBuilder, gate: NetworkPolicy | None = None
) -> None:
    """Create webhook deliveries from the journal and post them, until cancelled."""
    worker = WebhookWorker(
        environment, build_body, gate or NetworkPolicy.from_options(environment.options)
    )
    async with leases.registered_process(environment):
        await _run_loop(worker)


async def _run_loop(worker: WebhookWorker) -> None:
    last_full_read, environment = -POLL_SECONDS, worker.environment
    with environment.wakeups.follow_all_streams() as wakeup:
        try:
            while True:
                grown_stream_ids, pause = wakeup.take_streams(), POLL_SECONDS
                if monotonic() - last_full_read >= POLL_SECONDS:  # wake-ups can be lost
                    last_full_read = monotonic()
                    pause = await _feed_and_start_lanes_or_log(worker, None)
                elif worker.has_webhooks or worker.lanes or WEBHOOKS in grown_stream_ids:
                    pause = await _feed_and_start_lanes_or_log(worker, grown_stream_ids)
                await wait_for_any(
                    (wakeup, worker.lane_freed),
                    min(pause, last_full_read + POLL_SECONDS - monotonic()),
                )
        finally:
            await _stop_lanes(worker)


async def _feed_and_start_lanes_or_log(worker: WebhookWorker, stream_ids: set[int] | None) -> float:
    try:
        if stream_ids is None or stream_ids:
            worker.has_webhooks = await create_deliveries_if_webhooks_active(
                worker.environment, stream_ids
            )
        await delete_old_deliveries_each_minute(worker)
        return await start_lanes(worker)
    except Exception:  # the worker must survive an outage of the database
        log.exception("webhooks could not be looked after")
        return POLL_SECONDS


async def start_lanes(worker: WebhookWorker) -> float:
    """Start to post from due lanes; returns the seconds until the next call."""
    worker.lane_freed.clear()  # before the read, so that a lane freed after it wakes the worker
    environment, now = worker.environment, worker.environment.now()
    lane_counts = Counter(lane.webhook_id for lane in worker.lanes)
    full_webhook_ids = [key for key, many in lane_counts.items() if many >= MAX_LANES_PER_WEBHOOK]
    if len(worker.lanes) >= MAX_LANES:
        return POLL_SECONDS
    ready_webhooks = select(*select_columns(Webhook, ("id", "failures"))).where(
        or_(col(Webhook.retry_at).is_(None), col(Webhook.retry_at) <= now),
        col(Webhook.id).not_in(full_webhook_ids),
        exists().where(
            col(WebhookLane.webhook_id) == col(Webhook.id), _is_due_unleased_lane_sql(now)
        ),
    )
    hooks = await environment.database.read(
        ready_webhooks.order_by(col(Webhook.id)).limit(MAX_LANES)
    )
    for hook in hooks:
        max_lanes = 1 if hook.failures >= FAILURES_BEFORE_PAUSE else MAX_LANES_PER_WEBHOOK
        for lane in await _claim_lanes(environment, hook.id, max_lanes - lane_counts[hook.id]):
            worker.lanes[lane] = asyncio.create_task(_serve_lane(worker, lane))
    if len(hooks) == MAX_LANES:
        return MIN_WAIT_SECONDS
    return await _seconds_until_due(environment, full_webhook_ids)


def _is_active_or_test_lane_sql() -> ColumnElement[bool]:
    """Return the SQL condition for lanes of active webhooks and for test lanes."""
    return or_(col(Webhook.active), col(WebhookLane.stream_id) == TEST_STREAM_ID)


def _is_due_unleased_lane_sql(now: datetime) -> ColumnElement[bool]:
    """Return the SQL condition for lanes that are due and that no process posts from."""
    return (
        (col(WebhookLane.due_at) <= now)
        & leases.is_unleased(WebhookLane)
        & _is_active_or_test_lane_sql()
    )


async def _seconds_until_due(environment: Environment, full_webhook_ids: Sequence[int]) -> float:
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


async def _claim_lanes(
    environment: Environment, webhook_id: int, max_lanes: int
) -> list[ClaimedLane]:
    """Claim due lanes of a webhook that no process holds."""
    if max_lanes <= 0:
        return []
    now, lease = environment.now(), environment.new_id()
    process_id = await leases.ensure_registered(environment)
    lane_columns = (col(WebhookLane.webhook_id), col(WebhookLane.stream_id))
    statement = (
        select(*lane_columns)
        .join(Webhook, col(Webhook.id) == col(WebhookLane.webhook_id))
        .where(col(WebhookLane.webhook_id) == webhook_id, _is_due_unleased_lane_sql(now))
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
    return [ClaimedLane(webhook, stream, lease) for webhook, stream in keys]


async def _serve_lane(worker: WebhookWorker, lane: ClaimedLane) -> None:
    """Post from a lane and release it. Exceptions are logged."""
    try:
        with leases.protect_leases_in_use(worker.environment, lane.lease):
            due_at = await _post_until_failure_or_empty(worker, lane)
            await _release_or_delete_lane(worker.environment, lane, due_at)
    except WebhookLeaseLost:
        log.warning("the lease has passed to another worker", extra={"webhook": lane.webhook_id})
    except Exception:
        log.exception("a webhook could not be served", extra={"webhook": lane.webhook_id})
        leases.end_lease_at_later_heartbeat(
            worker.environment, WebhookLane, lane.is_claimed, delay_seconds=PAUSE_AFTER_ERROR
        )
    finally:
        worker.lanes.pop(lane, None)
        worker.lane_freed.set()


async def _post_until_failure_or_empty(worker: WebhookWorker, lane: ClaimedLane) -> datetime | None:
    """Post until the lane is empty or a post fails.

    Returns when to continue; None means at once.
    """
    environment = worker.environment
    while True:
        webhook, deliveries = await _read_waiting(environment, lane)
        if webhook is None or not deliveries:
            return None
        for row in deliveries:
            post_of_delivery = WebhookPost(lane, webhook, row)
            if row.next_attempt_at and row.next_attempt_at > environment.now():
                return _next_attempt_at(row)
            if row.expires_at <= environment.now():
                await _record_result(environment, post_of_delivery, EXPIRED_RESULT)
                continue
            result = await _post_event(worker, webhook, row)
            environment.reach_fault_point("posted")
            retry_at = await _record_result(environment, post_of_delivery, result)
            if not result.is_success:
                return retry_at


def _next_attempt_at(delivery: ColumnRow) -> datetime:
    at: datetime = delivery.next_attempt_at
    return at


async def _read_waiting(
    environment: Environment, lane: ClaimedLane
) -> tuple[ColumnRow | None, Sequence[ColumnRow]]:
    """Read the webhook and its next deliveries; None if it was deleted or switched off."""
    statement = select(*select_columns(Webhook)).where(col(Webhook.id) == lane.webhook_id)
    if lane.stream_id != TEST_STREAM_ID:
        statement = statement.where(col(Webhook.active))
    hook = next(iter(await environment.database.read(statement)), None)
    rows = select(*select_columns(WebhookDelivery)).where(_is_waiting_in_lane(lane))
    order = (col(WebhookDelivery.number), col(WebhookDelivery.id))
    return hook, await environment.database.read(rows.order_by(*order).limit(BATCH_SIZE))


def _is_waiting_in_lane(lane: ClaimedLane) -> ColumnElement[bool]:
    return (
        (col(WebhookDelivery.webhook_id) == lane.webhook_id)
        & (col(WebhookDelivery.stream_id) == lane.stream_id)
        & (col(WebhookDelivery.state) == WebhookDeliveryState.PENDING)
    )


async def _post_event(worker: WebhookWorker, webhook: ColumnRow, delivery: ColumnRow) -> PostResult:
    """Post one event. Failures are part of the result."""
    started, environment = monotonic(), worker.environment
    status, error = None, None
    try:
        allow_private = (
            worker.gate.allows_private or environment.options.webhooks_allow_private_networks
        )
        endpoint = parse_target(webhook.url, allow_private=allow_private)
        body = orjson.dumps(worker.build_body(delivery))
        headers = signed_headers(environment, webhook, delivery.event, body)
        status = await post(
            endpoint, headers, body, replace(worker.gate, allows_private=allow_private)
        )
        error = status_problem(status)
    except InvalidInput as problem:  # accepted under earlier settings
        error = problem.message
    except HttpRequestFailed as problem:
        error = str(problem)
    except DecryptionError:
        error = "its secret cannot be read"
    took = monotonic() - started
    POST_RESULTS.add("failed" if error else "taken")
    POST_SECONDS.observe(took)
    facts = {"webhook": webhook.id, "delivery": delivery.id, "status": status, "error": error}
    log.info("webhook posted" if error is None else "webhook failed", extra=facts)
    return PostResult(status, error, took)


def retry_delay(attempts: int, random_fraction: float) -> timedelta:
    """Return the delay after a number of attempts, varied by 20 %.

    `random_fraction` is from 0 up to 1.
    """
    base_delay = RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1]
    return base_delay * (1 - JITTER + 2 * JITTER * random_fraction)


async def _record_result(
    environment: Environment, post_of_delivery: WebhookPost, result: PostResult
) -> datetime | None:
    """Write the result of a post.

    Returns the time of the next attempt, or None if there is none.
    """
    now, was_posted, test = (
        environment.now(),
        result is not EXPIRED_RESULT,
        post_of_delivery.lane.stream_id == TEST_STREAM_ID,
    )
    attempt = post_of_delivery.delivery.attempt + was_posted
    retry_at = now + retry_delay(max(attempt, 1), _random_fraction(environment))
    is_final = (
        attempt >= MAX_ATTEMPTS
        or retry_at >= post_of_delivery.delivery.expires_at
        or not was_posted
        or test
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
        connection = (
            await session.connection()
        )  # first the webhook, in the lock order of its deletion
        webhook_statement = select(col(Webhook.id)).where(
            col(Webhook.id) == post_of_delivery.webhook.id
        )
        await connection.execute(webhook_statement.with_for_update(read=True, key_share=True))
        statement = (
            select(col(WebhookLane.lease)).where(post_of_delivery.lane.is_claimed).with_for_update()
        )
        if not (await connection.execute(statement)).first():
            raise WebhookLeaseLost
        delivery_update = update(WebhookDelivery).where(
            col(WebhookDelivery.id) == post_of_delivery.delivery.id
        )
        await connection.execute(delivery_update.values(values))
        if result.is_success or (was_posted and not test):
            await _update_webhook_health(environment, session, post_of_delivery.webhook, result)
    if state is WebhookDeliveryState.FAILED:
        facts = {"webhook": post_of_delivery.webhook.id, "delivery": post_of_delivery.delivery.id}
        log.warning("webhook given up", extra=facts)
    return retry_at if is_waiting else None


def _random_fraction(environment: Environment) -> float:
    return int.from_bytes(environment.random_bytes(2)) / 0x10000


async def _update_webhook_health(
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


async def _release_or_delete_lane(
    environment: Environment, lane: ClaimedLane, due_at_or_now: datetime | None
) -> None:
    """Release a lane until `due_at_or_now` (None: due at once), or delete it if it is empty."""
    async with environment.write_session() as session:
        connection = await session.connection()
        statement = select(col(WebhookLane.stream_id)).where(lane.is_claimed).with_for_update()
        if not (await connection.execute(statement)).first():
            return
        waiting_statement = (
            select(col(WebhookDelivery.id)).where(_is_waiting_in_lane(lane)).limit(1)
        )
        if (
            await connection.execute(waiting_statement)
        ).first():  # read under the lock, so that no delivery is added before the update
            released = {"lease": None, "holder": None, "due_at": due_at_or_now or environment.now()}
            await connection.execute(update(WebhookLane).where(lane.is_claimed).values(released))
        else:
            await connection.execute(delete(WebhookLane).where(lane.is_claimed))


async def _stop_lanes(worker: WebhookWorker) -> None:
    """Cancel the tasks of all lanes and release the lanes, so that other processes continue."""
    lanes = dict(worker.lanes)
    for task in lanes.values():
        task.cancel()
    await asyncio.gather(*lanes.values(), return_exceptions=True)
    with suppress(Exception):  # the leases end with the process registration
        await _release_lanes(worker.environment, lanes)


async def _release_lanes(environment: Environment, lanes: Iterable[ClaimedLane]) -> None:
    for lane in lanes:
        async with environment.write_session() as session:
            released = {"lease": None, "holder": None}
            await (await session.connection()).execute(
                update(WebhookLane).where(lane.is_claimed).values(released)
            )


async def delete_old_deliveries_each_minute(worker: WebhookWorker) -> None:
    """Delete all but the newest 1,000 deliveries of each webhook and final state.

    Does nothing if called again within a minute.
    """
    environment, now = worker.environment, monotonic()
    if worker.last_sweep is not None and now < worker.last_sweep + SWEEP_SECONDS:
        return
    worker.last_sweep = now
    oldest_kept = await environment.database.read(_deletion_ends_query())
    for start in range(0, len(oldest_kept), MAX_LANES):
        statement = delete(WebhookDelivery).where(
            or_(
                *(
                    and_(
                        col(WebhookDelivery.webhook_id) == row.id,
                        col(WebhookDelivery.state) == row.state,
                        col(WebhookDelivery.id) <= row.end,
                    )
                    for row in oldest_kept[start : start + MAX_LANES]
                )
            )
        )
        async with environment.write_session() as session:
            await (await session.connection()).execute(statement)


def _deletion_ends_query() -> Select[*tuple[Any, ...]]:
    """Return the query for the newest delivery to delete of each webhook and final state.

    It walks MAX_STORED_DELIVERIES entries of an index for each; a window function would read all
    rows.
    """
    state_type = core_table(WebhookDelivery).c.state.type
    states = union_all(
        *(select(literal(state, state_type).label("state")) for state in FINAL_STATES)
    ).subquery()
    hooks = select(col(Webhook.id), states.c.state).join(states, true()).subquery()
    newest_to_delete = (
        select(col(WebhookDelivery.id))
        .where(
            col(WebhookDelivery.webhook_id) == hooks.c.id,
            col(WebhookDelivery.state) == hooks.c.state,
        )
        .order_by(col(WebhookDelivery.id).desc())
        .offset(MAX_STORED_DELIVERIES)
        .limit(1)
        .scalar_subquery()
    )
    found = select(hooks.c.id, hooks.c.state, newest_to_delete.label("end")).subquery()
    return select(found).where(found.c.end.is_not(None))
