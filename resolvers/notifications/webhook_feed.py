"""Create webhook deliveries from the journal, once for each event and webhook."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from models.auth.security_log import AuthEvent
from models.domains.tables import Domain
from models.events.journal import LONGEST, PLATFORM, Change, ChangeKind, Stream
from models.notifications.webhooks import (
    TRIED_FOR,
    PostState,
    Webhook,
    WebhookFeed,
    narrow,
    put,
    wide,
)
from models.runtime.environment import World
from models.store.columns import Big, Picked, insert_or, picked, table_of
from models.users.tables import User
from resolvers.notifications.webhook_event_types import MISSED, News, news, wanted

log = logging.getLogger(__name__)

STREAMS = 250  # in one statement
CHANGES = 500  # in one statement
MANY = 5000  # if more streams have grown, all are read
RESTORED = "STORE_RESTORED"  # as in `ResyncReason`
TARGET = {"id", "user_id", "domain_id", "types", "since"}


@dataclass(frozen=True, slots=True)
class Due:
    """A stream with unread events.

    It has the position of the last read, the last, and the last deleted event.
    """

    stream_id: int
    number: int
    last: int
    gone: int
    gone_at: datetime | None

    def crosses(self, base: int) -> bool:
        """True if the unread events begin in an earlier incarnation of the store."""
        return self.number < base <= self.gone

    @property
    def missed(self) -> int:
        """The number of events that were deleted before they were read."""
        return max(self.gone - self.number, 0) if self.gone_at else 0


class Posed(NamedTuple):
    """Which part of the journal active webhooks need: all streams or some, and since when."""

    wide: bool
    since: datetime


async def feed(world: World, grown: Collection[int] | None = None) -> bool:
    """Create the deliveries of new events; False if there are no active webhooks.

    `stream_ids` are the ids of the streams to read; None reads all.
    """
    posed = await _posed(world)
    if posed is None:
        return False
    if grown is not None and len(grown) > MANY:
        grown = None
    above = -1
    while due := await _due(world, posed, grown, above):
        above = due[-1].stream_id
        while due:
            due = await _read(world, posed, due)
    return True


async def _posed(world: World) -> Posed | None:
    """Return what active webhooks need; None if there are none."""
    all_there_is = wide()
    asked = select(all_there_is.label("wide"), func.min(Webhook.since).label("since"))
    rows = await world.database.read(asked.where(col(Webhook.active)).group_by(all_there_is))
    if not rows:
        return None
    return Posed(any(row.wide for row in rows), min(row.since for row in rows))


async def _due(world: World, posed: Posed, grown: Collection[int] | None, above: int) -> list[Due]:
    """Read the next streams with unread events, in the order of their ids."""
    number = func.coalesce(col(WebhookFeed.number), 0)
    stand = (getattr(Stream, name) for name in ("last", "gone", "gone_at"))
    asked = (
        select(col(Stream.id), number.label("number"), *stand)
        .outerjoin(WebhookFeed, col(WebhookFeed.stream_id) == col(Stream.id))
        .where(col(Stream.id) > above, col(Stream.last) > number)
        .order_by(col(Stream.id))
        .limit(STREAMS)
    )
    if not posed.wide:
        asked = asked.where(narrow(col(Stream.id)))
    if grown is not None:
        asked = asked.where(col(Stream.id).in_(sorted(grown)))
    return [Due(*row) for row in await world.database.read(asked)]


async def _read(world: World, posed: Posed, due: Sequence[Due]) -> list[Due]:
    """Read a batch of events of these streams and store the deliveries.

    Returns the unfinished streams.
    """
    later = (
        and_(
            col(Change.stream_id) == each.stream_id,
            col(Change.last).between(each.number + 1, each.last),
            col(Change.at) >= posed.since,
        )
        for each in due
    )
    order = (col(Change.stream_id), col(Change.last))
    asked = select(*picked(Change)).where(or_(*later)).order_by(*order).limit(CHANGES)
    changes = await world.database.read(asked)
    cut = changes[-1] if len(changes) == CHANGES else None
    reached = {each.stream_id: each.last for each in due}
    if cut is not None:
        reached = {key: last for key, last in reached.items() if key < cut.stream_id}
        reached[cut.stream_id] = cut.last
    rows = await _missed_by(
        world, [each for each in due if each.missed and each.stream_id in reached]
    )
    if changes:
        rows += await rows_of(world, changes, await _targets(world, changes))
    await _store(world, [each for each in due if each.stream_id in reached], reached, rows)
    return [
        replace(each, number=reached.get(each.stream_id, each.number))
        for each in due
        if reached.get(each.stream_id, each.number) < each.last
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """The user or domain that a stream belongs to."""

    user: Picked | None
    domain_id: int | None


async def _places(world: World, streams: Collection[int]) -> dict[int, Place]:
    people = select(col(User.id), col(User.username), col(User.domain_id))
    users = await world.database.read(people.where(col(User.id).in_(streams)))
    domains = select(col(Domain.id)).where(col(Domain.id).in_(streams))
    found = {row.id: Place(None, row.id) for row in await world.database.read(domains)}
    return found | {row.id: Place(row, row.domain_id) for row in users}


@dataclass(frozen=True, slots=True)
class Target:
    """The scope of a webhook: a user while it is in the domain, a domain, or everything."""

    id: int
    user_id: int | None
    domain_id: int | None
    types: Sequence[str]
    since: datetime


async def rows_of(
    world: World, changes: Sequence[Picked], targets: Sequence[Target]
) -> list[dict[str, Any]]:
    """Return the delivery rows of these changes for these webhooks."""
    places = await _places(world, {change.stream_id for change in changes})
    noted = (change for change in changes if change.kind is ChangeKind.SECURITY_EVENT)
    seen = await _seen(world, sorted({key for change in noted for key in change.ids}))
    return [
        _row(world, each.id, theirs, place)
        for change in changes
        if not _elsewhere(change)
        for place in (places.get(change.stream_id, Place(None, None)),)
        for told in news(change, seen)
        for each in targets
        if (theirs := _heard(each, told, place))
    ]


async def _missed_by(world: World, due: Sequence[Due]) -> list[dict[str, Any]]:
    """Return delivery rows with the number of events that were deleted unread."""
    if not due:
        return []
    base = world.incarnation.base
    missed = sum(each.missed for each in due if not each.crosses(base))
    log.warning("changes went before webhooks had them", extra={"events": missed})
    places = await _places(world, {each.stream_id for each in due})
    asked = select(*picked(Webhook, TARGET), col(User.domain_id).label("home")).outerjoin(
        User, col(User.id) == col(Webhook.user_id)
    )
    hooks = await world.database.read(asked.where(col(Webhook.active)).order_by(col(Webhook.id)))
    return [
        _row_missed(world, hook.id, each, place)
        for each in due
        for place in (places.get(each.stream_id, Place(None, None)),)
        for hook in hooks
        if each.gone_at and hook.since <= each.gone_at and _waits(hook, each.stream_id, place)
    ]


def _waits(hook: Picked, stream: int, place: Place) -> bool:
    """True if a webhook can receive events of a stream (`webhooks.narrow` is the same in SQL)."""
    if stream == PLATFORM or (hook.user_id is None and hook.domain_id is None):
        return True
    if hook.user_id is None:
        return bool(hook.domain_id == place.domain_id)
    return stream in (hook.user_id, hook.home)


def _row_missed(world: World, webhook_id: int, each: Due, place: Place) -> dict[str, Any]:
    who = place.user and {"id": place.user.id, "username": place.user.username}
    facts: dict[str, Any] = {
        "kind": None,
        "user": who,
        "domain": place.domain_id,
        "objects": [],
        "origin": None,
    }
    return {
        "id": world.key(),
        "webhook_id": webhook_id,
        "stream_id": each.stream_id,
        "number": each.gone,
        "event": f"evt_{each.stream_id}_{each.gone}-missed",
        "type": MISSED,
        "at": each.gone_at,
        "body": {**facts, **_missed(each, world.incarnation.base)},
        "state": PostState.WAITING,
        "attempt": 0,
        "expires_at": world.now() + TRIED_FOR,
    }


def _missed(each: Due, base: int) -> dict[str, Any]:
    """Return the number of missed events; None with a reason after a restore."""
    if each.crosses(base):
        return {"missed": None, "reason": RESTORED}
    return {"missed": each.missed}


async def _targets(world: World, changes: Sequence[Picked]) -> list[Target]:
    """Read the webhooks that can receive one of these changes."""
    users = {change.stream_id for change in changes}
    for change in changes:
        if change.kind is ChangeKind.USER_CHANGED:
            users.update(change.ids)
    asked = select(*picked(Webhook, TARGET)).where(
        col(Webhook.active),
        col(Webhook.user_id).is_(None) | col(Webhook.user_id).in_(sorted(users)),
    )
    rows = await world.database.read(asked.order_by(col(Webhook.id)))
    return [Target(r.id, r.user_id, r.domain_id, r.types, r.since) for r in rows]


async def _seen(world: World, keys: Sequence[int]) -> dict[int, Picked]:
    """Read security log rows by id."""
    names = ("id", "action", "result", "protocol", "ip", "count")
    found: dict[int, Picked] = {}
    for start in range(0, len(keys), LONGEST):
        asked = select(*picked(AuthEvent, names)).where(
            col(AuthEvent.id).in_(keys[start : start + LONGEST])
        )
        found |= {row.id: row for row in await world.database.read(asked)}
    return found


def _elsewhere(change: Picked) -> bool:
    """True if another stream has the same event, or it is a task without an account."""
    if change.stream_id == PLATFORM:
        return bool(change.kind is ChangeKind.TASK_CHANGED)
    return change.kind is ChangeKind.DOMAIN_CHANGED or bool(change.facts.get("twice"))


def _heard(target: Target, told: News, place: Place) -> News | None:
    """Return the event, limited to what the webhook covers, or None."""
    change = told.change
    if change.at < target.since or not wanted(target.types, told.type):
        return None
    inside = target.domain_id in (None, place.domain_id, change.facts.get("domain"))
    if target.user_id is None:
        return told if inside else _about(told, ChangeKind.DOMAIN_CHANGED, target.domain_id)
    if inside and change.stream_id == target.user_id:
        return told
    return _about(told, ChangeKind.USER_CHANGED, target.user_id) if inside else None


def _about(told: News, kind: ChangeKind, key: int | None) -> News | None:
    objects = [each for each in told.objects if each["id"] == key]
    return replace(told, objects=objects) if objects and told.change.kind is kind else None


def _row(world: World, webhook_id: int, told: News, place: Place) -> dict[str, Any]:
    return {
        "id": world.key(),
        "webhook_id": webhook_id,
        "stream_id": told.change.stream_id,
        "number": told.change.last,
        "event": told.name,
        "type": told.type,
        "at": told.change.at,
        "body": told.body(place.user, place.domain_id),
        "state": PostState.WAITING,
        "attempt": 0,
        "expires_at": world.now() + TRIED_FOR,
    }


async def _store(
    world: World, due: Sequence[Due], reached: Mapping[int, int], rows: Sequence[dict[str, Any]]
) -> None:
    """Store deliveries and positions of streams that no other process has read.

    If events of a stream were deleted during the read, it is read again, since they can be
    missing.
    """
    async with world.write() as session:
        connection = await session.connection()
        held = await _held(connection, due)
        mine = {
            each.stream_id for each in due if held.get(each.stream_id) == (each.number, each.gone)
        }
        theirs = [row for row in rows if row["stream_id"] in mine]
        await connection.run_sync(put, world.now(), theirs)
        table = table_of(WebhookFeed)
        go_on = (
            update(table)
            .where(table.c.stream_id == bindparam("stream"))
            .values(number=bindparam("reached"))
        )
        if mine:
            further = [{"stream": key, "reached": reached[key]} for key in sorted(mine)]
            await connection.execute(go_on, further)


async def _held(connection: AsyncConnection, due: Sequence[Due]) -> dict[int, tuple[int, int]]:
    """Lock the positions of streams; returns the read and the deleted position of each."""
    keys = [each.stream_id for each in due]
    there = select(col(Stream.id), literal(0, Big)).where(col(Stream.id).in_(keys))
    new = insert_or(connection.dialect.name, WebhookFeed)
    begun = new.from_select(["stream_id", "number"], there.order_by(col(Stream.id)))
    await connection.execute(begun.on_conflict_do_nothing())
    stream = col(WebhookFeed.stream_id)
    asked = select(*picked(WebhookFeed), col(Stream.gone)).join(Stream, col(Stream.id) == stream)
    asked = asked.where(stream.in_(keys)).order_by(stream).with_for_update(of=WebhookFeed)
    return {row.stream_id: (row.number, row.gone) for row in await connection.execute(asked)}
