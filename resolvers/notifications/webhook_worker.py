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

from mail.network.outbound_http import Gate, Unsent, post, refused, target
from models.errors import Invalid
from models.events.wakeups import WEBHOOKS, rest
from models.notifications.webhooks import PostState, Webhook, WebhookDelivery, WebhookLane
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from resolvers.notifications.webhook_feed import feed
from resolvers.notifications.webhook_signatures import signed

log = logging.getLogger(__name__)

POSTS = metrics.counter("merganser_webhook_posts", "Posts to webhooks, and what came.", "result")
TOOK = metrics.histogram("merganser_webhook_post_seconds", "Time of a post to a webhook.")
TESTS = -1  # the lane of test calls has no stream
PAUSE_AFTER_ERROR = 20.0  # seconds until a lane is retried after an exception
IDLE = 15.0  # between two reads without a wake-up
SOON = 0.05  # another worker can hold what is due
AT_ONCE = 100  # of one process
EACH = 4  # of one webhook
BATCH = 20  # deliveries of a lane in one statement
ATTEMPTS = 12
BACKOFF = tuple(
    timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 7200, 10800, 14400, 14400, 14400)
)
JITTER = 0.2  # of the delay, more or less
PATIENCE = 5  # consecutive; after that only one attempt at a time
GONE = 410
KEPT = 1000  # of a webhook in each final state
SWEEP = 60.0  # seconds
ENDED = (PostState.DONE, PostState.DEAD)
TOLD = timedelta(seconds=10)  # between two updates after successes

Worded = Callable[[Any], dict[str, Any]]  # builds the JSON body of a delivery row


@dataclass(frozen=True, slots=True)
class Lane:
    """The lane of a webhook and stream that this process holds a lease of."""

    webhook_id: int
    stream_id: int
    lease: int

    @property
    def where(self) -> ColumnElement[bool]:
        """Return the SQL condition for the lane while the lease is held."""
        return (
            (col(WebhookLane.webhook_id) == self.webhook_id)
            & (col(WebhookLane.stream_id) == self.stream_id)
            & (col(WebhookLane.lease) == self.lease)
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a post."""

    status: int | None
    error: str | None
    took: float  # seconds

    @property
    def taken(self) -> bool:
        """True if the receiver has accepted the event."""
        return self.error is None


TOO_LATE = Outcome(None, "not taken in time", 0)


@dataclass(frozen=True, slots=True)
class Post:
    """A delivery that is being posted."""

    lane: Lane
    hook: Picked
    row: Picked


class LeaseLost(Exception):
    """Another process posts from this lane."""


@dataclass
class Worker:
    """The state of the webhook worker of this process."""

    world: World
    worded: Worded
    gate: Gate
    lanes: dict[Lane, "asyncio.Task[None]"] = field(default_factory=dict)
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    swept: float | None = None  # monotonic seconds
    needed: bool = True  # without webhooks, wake-ups cause no statements


async def run(world: World, worded: Worded, gate: Gate | None = None) -> None:
    """Create webhook deliveries from the journal and post them, until cancelled."""
    worker = Worker(world, worded, gate or Gate.of(world.options))
    async with leases.registered(world):
        await _post_all(worker)


async def _post_all(worker: Worker) -> None:
    looked, world = -IDLE, worker.world
    with world.wakeups.gather() as bell:
        try:
            while True:
                grown, pause = bell.taken(), IDLE
                if monotonic() - looked >= IDLE:  # wake-ups can be lost
                    looked = monotonic()
                    pause = await _round(worker, None)
                elif worker.needed or worker.lanes or WEBHOOKS in grown:
                    pause = await _round(worker, grown)
                await rest((bell, worker.freed), min(pause, looked + IDLE - monotonic()))
        finally:
            await _wind_up(worker)


async def _round(worker: Worker, grown: set[int] | None) -> float:
    try:
        if grown is None or grown:
            worker.needed = await feed(worker.world, grown)
        await sweep(worker)
        return await look(worker)
    except Exception:  # the worker must survive an outage of the database
        log.exception("webhooks could not be looked after")
        return IDLE


async def look(worker: Worker) -> float:
    """Start to post from due lanes; returns the seconds until the next call."""
    worker.freed.clear()  # before the read, so that a lane freed after it wakes the worker
    world, now = worker.world, worker.world.now()
    busy = Counter(lane.webhook_id for lane in worker.lanes)
    full = [key for key, many in busy.items() if many >= EACH]
    if len(worker.lanes) >= AT_ONCE:
        return IDLE
    ready = select(*picked(Webhook, ("id", "failures"))).where(
        or_(col(Webhook.retry_at).is_(None), col(Webhook.retry_at) <= now),
        col(Webhook.id).not_in(full),
        exists().where(col(WebhookLane.webhook_id) == col(Webhook.id), _due(now)),
    )
    hooks = await world.database.read(ready.order_by(col(Webhook.id)).limit(AT_ONCE))
    for hook in hooks:
        most = 1 if hook.failures >= PATIENCE else EACH
        for lane in await _claim(world, hook.id, most - busy[hook.id]):
            worker.lanes[lane] = asyncio.create_task(_drive(worker, lane))
    if len(hooks) == AT_ONCE:
        return SOON
    return await _until(world, full)


def _on() -> ColumnElement[bool]:
    """Return the SQL condition for lanes of active webhooks and for test lanes."""
    return or_(col(Webhook.active), col(WebhookLane.stream_id) == TESTS)


def _due(now: datetime) -> ColumnElement[bool]:
    """Return the SQL condition for lanes that are due and that no process posts from."""
    return (col(WebhookLane.due_at) <= now) & leases.is_free(WebhookLane) & _on()


async def _until(world: World, full: Sequence[int]) -> float:
    """Return the seconds until the next lane is due."""
    now = world.now()
    free = (col(WebhookLane.webhook_id) == col(Webhook.id), col(WebhookLane.lease).is_(None))
    soonest = (
        select(col(WebhookLane.due_at))
        .where(*free, _on())
        .order_by(col(WebhookLane.due_at))
        .limit(1)
        .scalar_subquery()
    )
    asked = select(soonest.label("due_at"), col(Webhook.retry_at))
    rows = await world.database.read(asked.where(col(Webhook.id).not_in(full)))
    times: list[datetime] = [
        max(row.due_at, row.retry_at or row.due_at) for row in rows if row.due_at
    ]
    if not times:
        return IDLE
    return min(max((min(times) - now).total_seconds(), SOON), IDLE)


async def _claim(world: World, webhook_id: int, most: int) -> list[Lane]:
    """Claim due lanes of a webhook that no process holds."""
    if most <= 0:
        return []
    now, lease = world.now(), world.key()
    process_id = await leases.ensure_registered(world)
    place = (col(WebhookLane.webhook_id), col(WebhookLane.stream_id))
    due = (
        select(*place)
        .join(Webhook, col(Webhook.id) == col(WebhookLane.webhook_id))
        .where(col(WebhookLane.webhook_id) == webhook_id, _due(now))
        .where(leases.is_registered(process_id))
        .order_by(col(WebhookLane.due_at), col(WebhookLane.stream_id))
        .limit(most)
        .with_for_update(skip_locked=True, of=WebhookLane)
    )
    async with world.write() as session:
        connection = await session.connection()
        keys = [tuple(row) for row in (await connection.execute(due)).all()]
        if keys:
            taken = update(WebhookLane).where(tuple_(*place).in_(keys))
            await connection.execute(taken.values(**leases.held(process_id, lease)))
    return [Lane(webhook, stream, lease) for webhook, stream in keys]


async def _drive(worker: Worker, lane: Lane) -> None:
    """Post from a lane and release it. Exceptions are logged."""
    try:
        with leases.in_use(worker.world, lane.lease):
            due = await _posted(worker, lane)
            await _release(worker.world, lane, due)
    except LeaseLost:
        log.warning("the lease has passed to another worker", extra={"webhook": lane.webhook_id})
    except Exception:
        log.exception("a webhook could not be served", extra={"webhook": lane.webhook_id})
        leases.abandon(worker.world, WebhookLane, lane.where, after=PAUSE_AFTER_ERROR)
    finally:
        worker.lanes.pop(lane, None)
        worker.freed.set()


async def _posted(worker: Worker, lane: Lane) -> datetime | None:
    """Post until the lane is empty or a post fails.

    Returns when to continue; None means at once.
    """
    world = worker.world
    while True:
        hook, waiting = await _waiting(world, lane)
        if hook is None or not waiting:
            return None
        for row in waiting:
            one = Post(lane, hook, row)
            if row.next_attempt_at and row.next_attempt_at > world.now():
                return _at(row)
            if row.expires_at <= world.now():
                await _settle(world, one, TOO_LATE)
                continue
            outcome = await _try(worker, hook, row)
            world.fault("posted")
            again = await _settle(world, one, outcome)
            if not outcome.taken:
                return again


def _at(row: Picked) -> datetime:
    at: datetime = row.next_attempt_at
    return at


async def _waiting(world: World, lane: Lane) -> tuple[Picked | None, Sequence[Picked]]:
    """Read the webhook and its next deliveries; None if it was deleted or switched off."""
    asked = select(*picked(Webhook)).where(col(Webhook.id) == lane.webhook_id)
    if lane.stream_id != TESTS:
        asked = asked.where(col(Webhook.active))
    hook = next(iter(await world.database.read(asked)), None)
    rows = select(*picked(WebhookDelivery)).where(_in_lane(lane))
    order = (col(WebhookDelivery.number), col(WebhookDelivery.id))
    return hook, await world.database.read(rows.order_by(*order).limit(BATCH))


def _in_lane(lane: Lane) -> ColumnElement[bool]:
    return (
        (col(WebhookDelivery.webhook_id) == lane.webhook_id)
        & (col(WebhookDelivery.stream_id) == lane.stream_id)
        & (col(WebhookDelivery.state) == PostState.WAITING)
    )


async def _try(worker: Worker, hook: Picked, row: Picked) -> Outcome:
    """Post one event. Failures are part of the result."""
    begun, world = monotonic(), worker.world
    status, error = None, None
    try:
        private = worker.gate.private or world.options.webhooks_private
        to = target(hook.url, private=private)
        body = orjson.dumps(worker.worded(row))
        headers = signed(world, hook, row.event, body)
        status = await post(to, headers, body, replace(worker.gate, private=private))
        error = refused(status)
    except Invalid as problem:  # accepted under earlier settings
        error = problem.message
    except Unsent as problem:
        error = str(problem)
    except Sealed:
        error = "its secret cannot be read"
    took = monotonic() - begun
    POSTS.add("failed" if error else "taken")
    TOOK.note(took)
    facts = {"webhook": hook.id, "delivery": row.id, "status": status, "error": error}
    log.info("webhook posted" if error is None else "webhook failed", extra=facts)
    return Outcome(status, error, took)


def pause(attempts: int, chance: float) -> timedelta:
    """Return the delay after a number of attempts, varied by 20 %.

    `random_fraction` is from 0 up to 1.
    """
    usual = BACKOFF[min(attempts, len(BACKOFF)) - 1]
    return usual * (1 - JITTER + 2 * JITTER * chance)


async def _settle(world: World, one: Post, outcome: Outcome) -> datetime | None:
    """Write the result of a post.

    Returns the time of the next attempt, or None if there is none.
    """
    now, tried, test = world.now(), outcome is not TOO_LATE, one.lane.stream_id == TESTS
    attempt = one.row.attempt + tried
    again = now + pause(max(attempt, 1), _chance(world))
    over = attempt >= ATTEMPTS or again >= one.row.expires_at or not tried or test
    state = PostState.DONE if outcome.taken else PostState.DEAD if over else PostState.WAITING
    waits = state is PostState.WAITING
    values = {
        "state": state,
        "attempt": attempt,
        "error": outcome.error,
        "next_attempt_at": again if waits else None,
    }
    if tried:
        values |= {"status": outcome.status, "duration": round(1000 * outcome.took)}
    async with world.write() as session:
        connection = (
            await session.connection()
        )  # first the webhook, in the lock order of its deletion
        there = select(col(Webhook.id)).where(col(Webhook.id) == one.hook.id)
        await connection.execute(there.with_for_update(read=True, key_share=True))
        held = select(col(WebhookLane.lease)).where(one.lane.where).with_for_update()
        if not (await connection.execute(held)).first():
            raise LeaseLost
        this = update(WebhookDelivery).where(col(WebhookDelivery.id) == one.row.id)
        await connection.execute(this.values(values))
        if outcome.taken or (tried and not test):
            await _judge(world, session, one.hook, outcome)
    if state is PostState.DEAD:
        facts = {"webhook": one.hook.id, "delivery": one.row.id}
        log.warning("webhook given up", extra=facts)
    return again if waits else None


def _chance(world: World) -> float:
    return int.from_bytes(world.random(2)) / 0x10000


async def _judge(world: World, session: AsyncSession, hook: Picked, outcome: Outcome) -> None:
    """Record success or failure of a webhook.

    One that is gone is switched off; a failing one pauses.

    A success is written at most every ten seconds, unless a post has failed before.
    """
    this, now = update(Webhook).where(col(Webhook.id) == hook.id), world.now()
    connection = await session.connection()
    if outcome.taken:
        last = col(Webhook.last_delivery_at)
        late = last.is_(None) | (last <= now - TOLD) | (col(Webhook.failures) > 0)
        well = {"failures": 0, "retry_at": None, "last_delivery_at": now}
        await connection.execute(this.where(late).values(well))
        return
    rest = hook.failures + 1 - PATIENCE
    values: dict[str, Any] = {"failures": Webhook.failures + 1}
    if rest >= 0:
        values["retry_at"] = now + pause(rest + 1, _chance(world))
    if outcome.status == GONE:
        values["active"] = False
    await connection.execute(this.values(values))


async def _release(world: World, lane: Lane, due: datetime | None) -> None:
    """Release a lane until `due_at`, or delete it if it is empty."""
    async with world.write() as session:
        connection = await session.connection()
        held = select(col(WebhookLane.stream_id)).where(lane.where).with_for_update()
        if not (await connection.execute(held)).first():
            return
        left = select(col(WebhookDelivery.id)).where(_in_lane(lane)).limit(1)
        if (
            await connection.execute(left)
        ).first():  # read under the lock, so that no delivery is added meanwhile
            free = {"lease": None, "holder": None, "due_at": due or world.now()}
            await connection.execute(update(WebhookLane).where(lane.where).values(free))
        else:
            await connection.execute(delete(WebhookLane).where(lane.where))


async def _wind_up(worker: Worker) -> None:
    """Cancel the tasks of all lanes and release the lanes, so that other processes continue."""
    lanes = dict(worker.lanes)
    for task in lanes.values():
        task.cancel()
    await asyncio.gather(*lanes.values(), return_exceptions=True)
    with suppress(Exception):  # the leases end with the process registration
        await _given_back(worker.world, lanes)


async def _given_back(world: World, lanes: Iterable[Lane]) -> None:
    for lane in lanes:
        async with world.write() as session:
            free = {"lease": None, "holder": None}
            await (await session.connection()).execute(
                update(WebhookLane).where(lane.where).values(free)
            )


async def sweep(worker: Worker) -> None:
    """Delete all but the newest 1,000 deliveries of each webhook and final state.

    Does nothing if called again within a minute.
    """
    world, now = worker.world, monotonic()
    if worker.swept is not None and now < worker.swept + SWEEP:
        return
    worker.swept = now
    ends = await world.database.read(_ends())
    for start in range(0, len(ends), AT_ONCE):
        old = delete(WebhookDelivery).where(
            or_(
                *(
                    and_(
                        col(WebhookDelivery.webhook_id) == row.id,
                        col(WebhookDelivery.state) == row.state,
                        col(WebhookDelivery.id) <= row.end,
                    )
                    for row in ends[start : start + AT_ONCE]
                )
            )
        )
        async with world.write() as session:
            await (await session.connection()).execute(old)


def _ends() -> Select[*tuple[Any, ...]]:
    """Return the query for the newest delivery to delete of each webhook and final state.

    It walks MAX_STORED_DELIVERIES entries of an index for each; a window function would read all
    rows.
    """
    kind = table_of(WebhookDelivery).c.state.type
    states = union_all(*(select(literal(state, kind).label("state")) for state in ENDED)).subquery()
    hooks = select(col(Webhook.id), states.c.state).join(states, true()).subquery()
    end = (
        select(col(WebhookDelivery.id))
        .where(
            col(WebhookDelivery.webhook_id) == hooks.c.id,
            col(WebhookDelivery.state) == hooks.c.state,
        )
        .order_by(col(WebhookDelivery.id).desc())
        .offset(KEPT)
        .limit(1)
        .scalar_subquery()
    )
    found = select(hooks.c.id, hooks.c.state, end.label("end")).subquery()
    return select(found).where(found.c.end.is_not(None))
