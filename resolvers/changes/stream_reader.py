"""Follow the change journal."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from itertools import islice

from sqlalchemy import select
from sqlmodel import col

from models.errors import Invalid
from models.events import journal
from models.events.journal import ChangeKind, Event, Position, Stream
from models.observability import metrics
from models.runtime.environment import World
from models.store.columns import Picked
from resolvers.auth import credential_cache
from resolvers.changes.visible_streams import Hear, Heard, hearing
from resolvers.context import Context

log = logging.getLogger(__name__)

RESYNCS = metrics.counter(
    "merganser_change_resyncs", "Followers who were told to read afresh, and why.", "reason"
)
LAG = metrics.histogram(
    "merganser_change_lag_seconds",
    "Time from a change to the batch that brings it to a follower who had read all before it.",
)
LOOK = 15.0  # between checks for changes whose wake-up was lost
Sift = Callable[[Context, Sequence[Event]], Awaitable[Sequence[Event]]]
FOLDED = frozenset(
    {ChangeKind.MESSAGE_UPDATED, ChangeKind.SUBMISSION_CHANGED, ChangeKind.TASK_CHANGED}
)
NEWEST = frozenset(
    {"modseq", "flags"}
)  # facts whose value in the last change replaces earlier ones


class ResyncReason(StrEnum):
    """Why a stream cannot go on from a position."""

    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    CURSOR_UNKNOWN = "CURSOR_UNKNOWN"
    OVERFLOW = "OVERFLOW"
    STORE_RESTORED = "STORE_RESTORED"


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one wake-up, and the position after them.

    With `resync` it has no events: the client must read everything before that position again.
    """

    events: Sequence[Event]
    position: Position
    more: bool = False
    resync: ResyncReason | None = None
    ending: bool = False  # the events can have ended the follower's credential


@dataclass(frozen=True, slots=True)
class Asked:
    """Which changes a follower reads. The default is all changes of the viewer from now on."""

    since: Position | None = None
    kinds: Collection[ChangeKind] | None = None  # None: all
    mailboxes: Collection[int] | None = None  # None: all
    window: timedelta = timedelta(milliseconds=50)  # between two batches
    hear: Hear = hearing
    objects: Collection[int] = ()  # only changes of these; empty: all
    sift: Sift | None = None  # its number of statements must not depend on the number of events
    folded: bool = False  # only the last of equivalent events of an object in a batch


async def positions(ctx: Context, ids: Sequence[int]) -> dict[int, Picked]:
    """Load the last position and the last deleted position of streams, by stream id."""
    asked = select(col(Stream.id), col(Stream.last), col(Stream.gone)).where(
        col(Stream.id).in_(ids)
    )
    return {row.id: row for row in await ctx.read(asked)}


async def standing(ctx: Context, hear: Hear = hearing) -> dict[int, int]:
    """Return the last positions of the selected streams; by default those the viewer follows."""
    heard = await hear(ctx)
    return {key: row.last for key, row in (await positions(ctx, heard.streams)).items()}


async def by_streams(ctx: Context, ids: list[int]) -> list[Position | None]:
    """Load the positions of users' streams, in the given order. None for an unknown user.

    The viewer's position includes the streams of shared mailboxes.
    """
    mine, found = ctx.viewer.user_id, dict[int, Position]()
    if mine in ids and (ctx.begun or ctx.viewer.reach.shared):
        found[mine] = ctx.begun or await standing(ctx)
    others = [key for key in ids if key not in found]
    rows = await positions(ctx, others) if others else {}
    found |= {key: {key: row.last} for key, row in rows.items()}
    return [found.get(key) for key in ids]


async def page(ctx: Context, asked: Asked, most: int) -> Batch:
    """Return the next events after a position, at most `limit`, without waiting.

    It reads as far back as the journal is kept. `object_ids` is used as in `follow_changes`.
    Raises InvalidInput for a position of other streams.
    """
    heard = await asked.hear(ctx)
    at, reason = await _beginning(ctx, asked, heard, far=None)
    if reason:
        RESYNCS.add(reason)
        return Batch([], dict(at), resync=reason)
    batch, _ = await _next(ctx, at, asked, heard, most)
    return batch or Batch([], heard.places(at))


async def follow(ctx: Context, asked: Asked) -> AsyncGenerator[Batch]:
    """Yield the changes after a position: first the missed ones, then new ones as they come.

    By default these are changes of the viewer and of mailboxes shared with the viewer, with the
    rights at the time of delivery. The first batch is sent at once; events within
    `min_interval` of it are collected, and folded on request. Raises InvalidInput for a
    position of other streams.
    """
    turn, heard = credential_cache.turn(ctx.world), await asked.hear(ctx)
    with ExitStack() as listening:
        bell, listened = asyncio.Event(), set[int]()
        waited, at, lives = False, None, ctx.world.incarnation
        while True:
            for stream in set(heard.streams) - listened:
                listening.enter_context(ctx.world.wakeups.listen([stream], bell))
                listened.add(stream)
            if at is None or lives.base != ctx.world.incarnation.base:
                lives, far = ctx.world.incarnation, ctx.world.options.changes_overflow
                begun = asked if at is None else replace(asked, since=at)
                at, reason = await _beginning(ctx, begun, heard, far=far)
                if reason:
                    RESYNCS.add(reason)
                    yield Batch([], dict(at), resync=reason)
            bell.clear()  # before reading: a later change sets it again
            batch, heard = await _next(ctx, at, asked, heard, journal.MOST)
            if batch is None:
                waited = True
                await bell.wait()
                continue
            if ctx.vigil and (batch.ending or turn != credential_cache.turn(ctx.world)):
                turn = credential_cache.turn(ctx.world)
                await ctx.vigil()
            if batch.resync or batch.events or _grown(heard, at, batch.position):
                _count(ctx, batch, live=waited)
                yield replace(batch, events=_folded(batch.events)) if asked.folded else batch
            waited = waited and not batch.more
            at = dict(batch.position)
            if not batch.more:
                await asyncio.sleep(asked.window.total_seconds())
                if listened.issuperset(
                    heard.streams
                ):  # every change since the read sets the wake-up
                    waited = True
                    await bell.wait()


def _folded(events: Sequence[Event]) -> Sequence[Event]:
    """Return the events without those that a later event of the same object makes superfluous.

    Such events have the same kind and origin, and differ only in LAST_VALUE_FACTS.
    """
    if len(events) == 1:
        return events
    kept, said = list[Event](), set[tuple[object, ...]]()
    for event in reversed(events):
        if event.kind in FOLDED:
            facts = sorted(one for one in event.facts.items() if one[0] not in NEWEST)
            same = (event.kind, event.stream_id, event.object_id, event.origin, repr(facts))
            if same in said:
                continue
            said.add(same)
        kept.append(event)
    return kept[::-1]


def _grown(heard: Heard, at: Position, to: Position) -> bool:
    return any(to.get(stream) != at.get(stream) for stream in heard.open)


async def _beginning(
    ctx: Context, asked: Asked, heard: Heard, *, far: int | None
) -> tuple[Position, ResyncReason | None]:
    """Return the position to start at, and the reason if it is not the requested one.

    Raises InvalidInput for a position of other streams.
    """
    if asked.since and not heard.knows(asked.since):
        raise Invalid("a position in somebody else's stream", constraint="cursor", path=["after"])
    stand = await positions(ctx, heard.streams)
    at = {key: row.last for key, row in stand.items()}
    if asked.since is None:
        if ctx.trail:
            ctx.trail.begun(dict(at))
        return at, None
    places = heard.places(asked.since)
    since = {key: places.get(key, 0) for key in at}
    reason = _unusable(since, stand, far, ctx.world.incarnation.base)
    return (at if reason else since), reason


def _count(ctx: Context, batch: Batch, *, live: bool) -> None:
    if batch.resync:
        RESYNCS.add(batch.resync)
    elif live and batch.events:
        LAG.note(max(0.0, (ctx.world.now() - batch.events[0].at).total_seconds()))


def _unusable(
    since: Position, stand: dict[int, Picked], far: int | None, base: int
) -> ResyncReason | None:
    if any(number < base <= stand[key].gone for key, number in since.items()):
        return ResyncReason.STORE_RESTORED
    if any(number > stand[key].last for key, number in since.items()):
        return ResyncReason.CURSOR_UNKNOWN
    if any(number < stand[key].gone for key, number in since.items()):
        return ResyncReason.CURSOR_EXPIRED
    behind = sum(stand[key].last - number for key, number in since.items())
    return ResyncReason.OVERFLOW if far is not None and behind > far else None


async def _next(
    ctx: Context, at: Position, asked: Asked, heard: Heard, most: int
) -> tuple[Batch | None, Heard]:
    """Read the next events, with the viewer's rights at the time of reading.

    Returns None as batch if there are none, and the streams as they are then.
    """
    changes = await ctx.read(*journal.coming(at, most + 1))
    if not changes:
        return None, heard
    lost = _lost(changes, at)
    if lost:
        return Batch([], lost, resync=ResyncReason.CURSOR_EXPIRED, more=True), heard
    coming = list(islice(journal.events(changes, at), most + 1))
    found = coming[:most]  # the next event shows that there are more
    ending = heard.ending(found)
    if heard.stale(found):
        heard = await asked.hear(ctx)
    shown = [seen for event in found if (seen := heard.shown(event))]
    told: Sequence[Event] = [event for event in shown if _wanted(event, asked)]
    if asked.sift and told:
        told = await asked.sift(ctx, told)
    position = heard.places(found[-1].position)
    return Batch(told, position, more=len(coming) > len(found), ending=ending), heard


def _lost(changes: Sequence[Picked], at: Position) -> Position | None:
    """Return the position before the oldest kept change of each stream with a gap.

    Returns None if no change after `position` was deleted.
    """
    first: dict[int, int] = {}
    for change in changes:
        first.setdefault(change.stream_id, change.last - len(change.ids))
    gone = {key: number for key, number in first.items() if number > at[key]}
    return {**at, **gone} if gone else None


def _wanted(event: Event, asked: Asked) -> bool:
    if asked.kinds is not None and event.kind not in asked.kinds:
        return False
    if asked.objects and event.object_id not in asked.objects:
        return False
    if asked.mailboxes is None:
        return True
    about = {event.facts.get("mailbox"), event.facts.get("fromMailbox")}
    if event.kind.startswith("MAILBOX_"):
        about.add(event.object_id)
    return bool(about.intersection(asked.mailboxes))


async def watch(world: World) -> None:
    """Poll for changes whose wake-up was lost, with one query for the whole process."""
    while True:
        await asyncio.sleep(LOOK)
        try:
            await look(world)
        except Exception:  # keep running: the next attempt can succeed
            log.exception("the journal could not be read")


async def look(world: World) -> None:
    """Wake the followers of every followed stream that has new changes."""
    if followed := world.wakeups.followed:
        now = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(followed))
        for stream, last in await world.database.read(now):
            world.wakeups.ring(stream, last)
