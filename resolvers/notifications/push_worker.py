"""The worker that tells push channels of new mail: each in its own time, and never too often."""

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
PAUSE_AFTER_ERROR = 30.0  # seconds until a channel is tried again that broke
IDLE = 15.0  # seconds until it looks unasked
AT_ONCE = 50  # channels that a process serves
MANY = 5000  # streams that have grown; if there are more, all are looked at
TOGETHER = 3  # messages that are told one by one; more are one notice
BURST = 5  # pushes to a channel in
WINDOW = timedelta(minutes=1)
GONE: Mapping[PushKind, frozenset[int]] = {  # answers that end a channel
    PushKind.PUSHOVER: frozenset({400}),  # key or token are wrong; ours is a good form
    PushKind.WEB_PUSH: frozenset({404, 410}),  # RFC 8030, section 7.3
    PushKind.HTTP: frozenset({410}),
}
CHANGED = ["pushChannels"]


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a push: `error` is None where it was taken."""

    error: str | None
    gone: bool = False


class LeaseLost(Exception):
    """The channel was changed, or another process serves it."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A channel that is being told: whose it is, and the lease it is held by."""

    user_id: int
    lease: int
    task: "asyncio.Task[None]"


@dataclass
class Worker:
    """What is under way."""

    world: World
    called: Called
    gate: Gate
    busy: dict[int, Serving] = field(default_factory=dict)  # by channel
    grown: set[int] = field(default_factory=set)  # streams that are still to be looked at
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    needed: bool = True  # there are channels: else no bell costs a statement
    behind: bool = False  # there is more than was begun


async def run(world: World, called: Called, gate: Gate | None = None) -> None:
    """Tell push channels of new mail, until cancelled."""
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
                if everything:  # now and then for what no bell told of
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
    except Exception:  # a worker's edge: the store may be back when we look again
        log.exception("push channels could not be looked after")
        return IDLE


async def look(worker: Worker, *, everything: bool = True) -> float:
    """Begin what there is to tell; returns the seconds until there may be more.

    Of all accounts, or of those whose journals have grown.
    """
    worker.freed.clear()  # before we look: what ends from here on wakes us again
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
    # bells ring for much that is no mail: a write for each would be as many as changes
    pass_over = [row for row in quiet if everything or found[row.id].reached < row.last]
    await _passed_over(world, pass_over, found)
    for row in begin:
        lease = world.key()
        task = asyncio.create_task(_serve(worker, row.id, lease))
        worker.busy[row.id] = Serving(row.user_id, lease, task)
    worker.behind |= len(found) < len(on)
    worker.behind |= any(found[row.id].reached < row.last for row in quiet)
    worker.grown = {each.user_id for each in worker.busy.values()}  # those may grow meanwhile
    if worker.behind:
        worker.freed.set()
    return await _until(world)


def _due(worker: Worker, *, everything: bool) -> Select[*tuple[Any, ...]]:
    """SQL: channels with something behind what they were told, that nobody serves."""
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
        .order_by(col(PushChannel.failures), col(PushChannel.id))  # what fails waits for others
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
    """SQL: accounts that are in use. Who may not sign in is not told by another way."""
    return col(User.deleted_at).is_(None) & ~col(User.disabled) & ~col(User.suspended)


async def _until(world: World) -> float:
    """Seconds until a channel is tried again."""
    soonest = select(func.min(col(PushChannel.retry_at)).label("at")).where(
        col(PushChannel.retry_at) > world.now(), leases.is_free(PushChannel)
    )
    (row,) = await world.database.read(soonest)
    return IDLE if row.at is None else min((row.at - world.now()).total_seconds(), IDLE)


async def _passed_over(world: World, rows: Sequence[Picked], found: Mapping[int, Found]) -> None:
    """Go on behind what is nothing for these channels, in one unit."""
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
    """Tell a channel of what there is, come what may."""
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
    """The channel, which is ours for a while; None where it is another's."""
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
    """Push once; the channel as it is then, or None where there is no more to do now."""
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
    """What there is to tell of; None where nothing is to be told now."""
    waits = channel.retry_at is not None and channel.retry_at > world.now()
    if not channel.active or waits or channel.last <= channel.number:
        return None
    found = (await push_events.look(world, [channel]))[channel.id]
    if not channel.only_priority or not found.news:
        return found
    urgent = await push_events.urgent(world, [one.message.id for one in found.news])
    return replace(found, news=[one for one in found.news if one.message.id in urgent])


async def _notice(world: World, channel: Picked, found: Found) -> tuple[Notice, int]:
    """The next notice, and how far the journal is told by it."""
    first: News = found.news[0]
    many = found.news if len(found.news) > TOGETHER else [first]
    keys = [one.message.id for one in many]
    urgent = channel.evaluate_priority and bool(await push_events.urgent(world, keys))
    if len(many) > 1:
        return of_many(channel, len(many), urgent=urgent), found.reached
    number = first.number if len(found.news) > 1 else found.reached
    return of_message(channel, first.message, urgent=urgent), number


async def _push(worker: Worker, channel: Picked, notice: Notice) -> Told:
    """Post one notice."""
    begun, world = monotonic(), worker.world
    status, error = None, None
    # the operator says where Pushover is, and users where all else is
    private = worker.gate.private or world.options.push_private
    private = private or channel.kind is PushKind.PUSHOVER
    try:
        request = await posted(world, channel, notice, worker.called)
        to = target(request.url, private=private)
        status = await post(
            to, request.headers, request.body, replace(worker.gate, private=private)
        )
        error = refused(status)
    except Invalid as problem:  # it was let in by other settings
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
    """Write what came of a push; a channel that is gone is switched off, and its user hears."""
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
    """Write this to a channel that is still ours, and let it go or hold it on; LeaseLost."""
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
    """End what is under way; what is not taken yet is another's to tell."""
    busy = dict(worker.busy)
    for each in busy.values():
        each.task.cancel()
    await asyncio.gather(*(each.task for each in busy.values()), return_exceptions=True)
    with suppress(Exception):  # its leases end with its registration
        await _given_back(worker.world, [each.lease for each in busy.values()])


async def _given_back(world: World, leases: Sequence[int]) -> None:
    """Let channels go that were ours: they are served at once by whoever comes."""
    if leases:
        this = update(PushChannel).where(col(PushChannel.lease).in_(leases))
        async with world.write() as session:
            free = {"lease": None, "holder": None}
            await (await session.connection()).execute(this.values(free))
