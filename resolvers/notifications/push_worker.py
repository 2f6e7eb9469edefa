"""Send push notifications of new mail to channels, each at its own rate."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select, union, update
from sqlmodel import col

from mail.network.outbound_http import Gate, Unsent, post, refused, target
from models.errors import Invalid
from models.events.journal import ChangeKind, Entry, Stream, record
from models.events.wakeups import PUSHES, rest
from models.notifications.push_channels import PushChannel, PushKind
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from models.users.tables import User
from resolvers.notifications import push_events
from resolvers.notifications.push_events import Found, News
from resolvers.notifications.push_requests import (
    Called,
    Notice,
    of_many,
    of_message,
    posted,
    sample,
)
from resolvers.notifications.webhook_worker import pause as pause_after

log = logging.getLogger(__name__)

PUSHED = metrics.counter("merganser_pushes", "Pushes to users, and what came.", "kind", "result")
TOOK = metrics.histogram("merganser_push_seconds", "Time of a push.")
PAUSE_AFTER_ERROR = 30.0  # seconds until a channel is retried after an exception
IDLE = 15.0  # between two reads without a wake-up
AT_ONCE = 50  # of one process
MANY = 5000  # if more streams have grown, all channels are read
TOGETHER = 3  # more messages share one notification
BURST = 5  # of one channel in RATE_WINDOW
WINDOW = timedelta(minutes=1)
GONE: Mapping[PushKind, frozenset[int]] = {  # response statuses that switch a channel off
    PushKind.PUSHOVER: frozenset({400}),  # key or token is wrong
    PushKind.WEB_PUSH: frozenset({404, 410}),  # RFC 8030, section 7.3
    PushKind.HTTP: frozenset({410}),
}
CHANGED = ["pushChannels"]


@dataclass(frozen=True, slots=True)
class Told:
    """The result of a push. `error` is None on success; `is_gone` switches the channel off."""

    error: str | None
    gone: bool = False


class LeaseLost(Exception):
    """The channel was changed, or another process serves it."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A channel that this process serves, with its user and lease."""

    user_id: int
    lease: int
    task: "asyncio.Task[None]"


@dataclass
class Worker:
    """The state of the push worker of this process."""

    world: World
    called: Called
    gate: Gate
    busy: dict[int, Serving] = field(default_factory=dict)  # by channel id
    grown: set[int] = field(default_factory=set)  # not yet read
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    needed: bool = True  # without channels, wake-ups cause no statements
    behind: bool = False  # more channels are due than were started


async def run(world: World, called: Called, gate: Gate | None = None) -> None:
    """Send push notifications until cancelled."""
    worker = Worker(world, called, gate or Gate.of(world.options))
    async with leases.registered(world):
        await _tell(worker)


async def _tell(worker: Worker) -> None:
    looked, world = -IDLE, worker.world
    with world.wakeups.gather() as bell:
        try:
            while True:
                grown, pause = bell.taken(), IDLE
                everything = monotonic() - looked >= IDLE or PUSHES in grown or worker.behind
                if everything:  # wake-ups can be lost
                    looked = monotonic()
                if everything or worker.needed or worker.busy:
                    worker.grown |= grown
                    pause = await _round(worker, everything=everything)
                await rest((bell, worker.freed), min(pause, looked + IDLE - monotonic()))
        finally:
            await _wind_up(worker)


async def _round(worker: Worker, *, everything: bool) -> float:
    try:
        return await look(worker, everything=everything)
    except Exception:  # the worker must survive an outage of the database
        log.exception("push channels could not be looked after")
        return IDLE


async def look(worker: Worker, *, everything: bool = True) -> float:
    """Start to serve channels with something new; returns the seconds until the next call.

    Reads all accounts, or those with grown streams.
    """
    # before the read, so that a channel that is freed after it wakes the worker
    worker.freed.clear()
    world, room = worker.world, AT_ONCE - len(worker.busy)
    if everything:
        there = await world.database.read(select(col(PushChannel.id)).limit(1))
        worker.needed = bool(there)
    if not worker.needed:
        worker.grown.clear()
    if room <= 0 or not worker.needed:
        return IDLE
    everything = everything or len(worker.grown) > MANY
    rows = await world.database.read(_due(worker, everything=everything).limit(room))
    worker.behind = len(rows) == room
    on = [row for row in rows if row.active]
    found = await push_events.look(world, on) if on else {}
    begin = [row for row in rows if row.test_at or (row.id in found and found[row.id].news)]
    begun = {row.id for row in begin}
    quiet = [row for row in rows if row.id in found and row.id not in begun]
    # most wake-ups are not about mail: a write for each would be too many
    pass_over = [row for row in quiet if everything or found[row.id].reached < row.last]
    await _passed_over(world, pass_over, found)
    for row in begin:
        lease = world.key()
        task = asyncio.create_task(_serve(worker, row.id, lease))
        worker.busy[row.id] = Serving(row.user_id, lease, task)
    worker.behind |= len(found) < len(on)
    worker.behind |= any(found[row.id].reached < row.last for row in quiet)
    worker.grown = {
        each.user_id for each in worker.busy.values()
    }  # their streams can grow meanwhile
    if worker.behind:
        worker.freed.set()
    return await _until(world)


def _due(worker: Worker, *, everything: bool) -> Select[*tuple[Any, ...]]:
    """Return the SQL query for channels with new events that no process serves."""
    now, late = worker.world.now(), col(PushChannel.retry_at)
    news = col(PushChannel.active) & (col(Stream.last) > col(PushChannel.number))
    due = late.is_(None) | (late <= now)
    asked = (
        select(*picked(PushChannel), col(Stream.last))
        .join(Stream, col(Stream.id) == col(PushChannel.user_id))
        .join(User, col(User.id) == col(PushChannel.user_id))
        .where(
            news | col(PushChannel.test_at).is_not(None),
            due,
            _theirs(),
            leases.is_free(PushChannel),
        )
        .where(col(PushChannel.id).not_in(list(worker.busy)))
        .order_by(col(PushChannel.failures), col(PushChannel.id))  # failing channels come last
    )
    if everything:
        return asked
    key = col(PushChannel.id)
    some = union(  # each by its index
        select(key).where(col(PushChannel.user_id).in_(sorted(worker.grown))),
        select(key).where(late <= now),
        select(key).where(col(PushChannel.test_at).is_not(None)),
    )
    return asked.where(key.in_(some))


def _theirs() -> ColumnElement[bool]:
    """Return the SQL condition for accounts that may sign in; others are not notified."""
    return col(User.deleted_at).is_(None) & ~col(User.disabled) & ~col(User.suspended)


async def _until(world: World) -> float:
    """Return the seconds until the next retry of a channel."""
    soonest = select(func.min(col(PushChannel.retry_at)).label("at")).where(
        col(PushChannel.retry_at) > world.now(), leases.is_free(PushChannel)
    )
    (row,) = await world.database.read(soonest)
    return IDLE if row.at is None else min((row.at - world.now()).total_seconds(), IDLE)


async def _passed_over(world: World, rows: Sequence[Picked], found: Mapping[int, Found]) -> None:
    """Advance the positions of channels without new messages, in one transaction."""
    if not rows:
        return
    table = table_of(PushChannel)
    on = (
        update(table)
        .where(table.c.id == bindparam("key"), table.c.number == bindparam("since"))
        .where(leases.is_free(PushChannel))
        .values(number=bindparam("reached"), retry_at=None)
    )
    given = [{"key": r.id, "since": r.number, "reached": found[r.id].reached} for r in rows]
    async with world.write() as session:
        await (await session.connection()).execute(on, given)


async def _serve(worker: Worker, key: int, lease: int) -> None:
    """Send all notifications of a channel. Exceptions are logged."""
    try:
        with leases.in_use(worker.world, lease):
            channel = await _claim(worker.world, key, lease)
            while channel is not None:
                channel = await _step(worker, channel)
    except LeaseLost:
        log.info("a push channel was changed meanwhile", extra={"channel": key})
    except Exception:
        log.exception("a push channel could not be served", extra={"channel": key})
        mine = col(PushChannel.id) == key, col(PushChannel.lease) == lease
        leases.abandon(worker.world, PushChannel, *mine, after=PAUSE_AFTER_ERROR)
    finally:
        worker.busy.pop(key, None)
        worker.freed.set()


async def _claim(world: World, key: int, lease: int) -> Picked | None:
    """Claim the lease of a channel and read it; None if another process holds the lease."""
    process_id = await leases.ensure_registered(world)
    mine = update(PushChannel).where(
        col(PushChannel.id) == key, leases.is_free(PushChannel), leases.is_registered(process_id)
    )
    async with world.write() as session:
        connection = await session.connection()
        await connection.execute(mine.values(**leases.held(process_id, lease)))
    return await _ours(world, key, lease)


async def _ours(world: World, key: int, lease: int) -> Picked | None:
    asked = (
        select(*picked(PushChannel), col(Stream.last))
        .join(Stream, col(Stream.id) == col(PushChannel.user_id))
        .join(User, col(User.id) == col(PushChannel.user_id))
        .where(col(PushChannel.id) == key, col(PushChannel.lease) == lease, _theirs())
    )
    return next(iter(await world.database.read(asked)), None)


async def _step(worker: Worker, channel: Picked) -> Picked | None:
    """Send one notification. Returns the channel after it, or None if nothing is left to do now."""
    world = worker.world
    window = channel.window_at
    running = window is not None and world.now() < window + WINDOW
    if running and channel.pushed >= BURST:
        await _settle(world, channel, {"retry_at": window + WINDOW}, release=True)
        return None
    counted = {
        "window_at": window if running else world.now(),
        "pushed": (channel.pushed if running else 0) + 1,
    }
    if channel.test_at:
        told = await _push(worker, channel, sample(channel, world))
        world.fault("pushed")
        values = {"test_at": None, "last_error": told.error, **counted}
        if told.error is None:
            values["last_push_at"] = world.now()
        await _settle(world, channel, values)
        return await _ours(world, channel.id, channel.lease)
    found = await _news(world, channel)
    if found is None or not found.news:
        values = {} if found is None else {"number": found.reached, "retry_at": None}
        await _settle(world, channel, values, release=True)
        return None
    notice, number = await _notice(world, channel, found)
    told = await _push(worker, channel, notice)
    world.fault("pushed")
    await _note(world, channel, told, {**counted, "number": number})
    return None if told.error else await _ours(world, channel.id, channel.lease)


async def _news(world: World, channel: Picked) -> Found | None:
    """Read new messages for a channel; None if nothing can be pushed now."""
    waits = channel.retry_at is not None and channel.retry_at > world.now()
    if not channel.active or waits or channel.last <= channel.number:
        return None
    found = (await push_events.look(world, [channel]))[channel.id]
    if not channel.only_priority or not found.news:
        return found
    urgent = await push_events.urgent(world, [one.message.id for one in found.news])
    return replace(found, news=[one for one in found.news if one.message.id in urgent])


async def _notice(world: World, channel: Picked, found: Found) -> tuple[Notice, int]:
    """Return the next notification and the journal position after it."""
    first: News = found.news[0]
    many = found.news if len(found.news) > TOGETHER else [first]
    keys = [one.message.id for one in many]
    urgent = channel.evaluate_priority and bool(await push_events.urgent(world, keys))
    if len(many) > 1:
        return of_many(channel, len(many), urgent=urgent), found.reached
    number = first.number if len(found.news) > 1 else found.reached
    return of_message(channel, first.message, urgent=urgent), number


async def _push(worker: Worker, channel: Picked, notice: Notice) -> Told:
    """Post one notification. Failures are part of the result."""
    begun, world = monotonic(), worker.world
    status, error = None, None
    # the address of Pushover is a setting, the others come from users
    private = worker.gate.private or world.options.push_private
    private = private or channel.kind is PushKind.PUSHOVER
    try:
        request = await posted(world, channel, notice, worker.called)
        to = target(request.url, private=private)
        status = await post(
            to, request.headers, request.body, replace(worker.gate, private=private)
        )
        error = refused(status)
    except Invalid as problem:  # accepted under earlier settings
        error = problem.message
    except Unsent as problem:
        error = str(problem)
    except Sealed:
        error = "its secrets cannot be read"
    PUSHED.add(channel.kind, "failed" if error else "taken")
    TOOK.note(monotonic() - begun)
    facts = {"channel": channel.id, "kind": channel.kind, "status": status, "error": error}
    log.info("pushed" if error is None else "push failed", extra=facts)
    return Told(error, gone=status in GONE[channel.kind])


async def _note(world: World, channel: Picked, told: Told, taken: Mapping[str, Any]) -> None:
    """Write the result of a push. A channel that is gone is switched off."""
    if told.error is None:
        well = {"failures": 0, "retry_at": None, "last_error": None, "last_push_at": world.now()}
        await _settle(world, channel, {**well, **taken})
        return
    failures = channel.failures + 1
    chance = int.from_bytes(world.random(2)) / 0x10000
    values = {
        "failures": failures,
        "last_error": told.error,
        "retry_at": world.now() + pause_after(failures, chance),
    }
    if told.gone:
        values |= {"active": False, "retry_at": None}
    await _settle(world, channel, values, release=True)


async def _settle(
    world: World, channel: Picked, values: Mapping[str, Any], *, release: bool = False
) -> None:
    """Update a claimed channel, and keep or release its lease. Raises PushLeaseLost."""
    held = {"lease": None, "holder": None} if release else {"lease": channel.lease}
    this = update(PushChannel).where(
        col(PushChannel.id) == channel.id, col(PushChannel.lease) == channel.lease
    )
    switched = values.get("active") is False
    async with world.write(*([channel.user_id] if switched else [])) as session:
        connection = await session.connection()
        if not (await connection.execute(this.values({**values, **held}))).rowcount:
            raise LeaseLost
        if switched:
            facts = {"changed": [CHANGED]}
            entry = Entry(ChangeKind.USER_CHANGED, [channel.user_id], facts)
            await record(session, channel.user_id, entry, at=world.now())


async def _wind_up(worker: Worker) -> None:
    """Cancel the served channels and release their leases, so that other processes continue."""
    busy = dict(worker.busy)
    for each in busy.values():
        each.task.cancel()
    await asyncio.gather(*(each.task for each in busy.values()), return_exceptions=True)
    with suppress(Exception):  # the leases end with the process registration
        await _given_back(worker.world, [each.lease for each in busy.values()])


async def _given_back(world: World, leases: Sequence[int]) -> None:
    """Release leases, so that another process can serve the channels at once."""
    if leases:
        this = update(PushChannel).where(col(PushChannel.lease).in_(leases))
        async with world.write() as session:
            free = {"lease": None, "holder": None}
            await (await session.connection()).execute(this.values(free))
