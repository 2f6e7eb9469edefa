"""How long the journal is kept: by age, by length, and for whoever has yet to read it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped
from sqlmodel import col

from models.events.journal import Change, Stream
from models.notifications import push_channels, webhooks
from models.runtime.environment import Turn, World
from models.store.columns import Picked, table_of

STREAMS = 5000  # looked at together
ROUND = 1000  # events that one unit removes
AT_ONCE = 50  # streams that one unit holds
GRACE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Feed:
    """Somebody who reads streams to their end, with a place of their own in each.

    `read` says in SQL which event of a stream was read last, NULL: none was; `heard`, whether
    anybody waits for what a stream tells.
    """

    name: str
    read: Callable[[Mapped[int]], Select[int]]
    heard: Callable[[Mapped[int]], ColumnElement[bool]]


# Changes wait for each of these, no longer than GRACE: by age from the end of their time on, by
# length from when they happened. What goes unread they find by `Stream.gone`, and tell.
FEEDS = (
    Feed("webhooks", webhooks.read, webhooks.heard),
    Feed("push", push_channels.read, push_channels.heard),
)


async def trim(world: World, *, aged: bool = True) -> int:
    """Remove changes that are more, and with `aged` older, than the journal keeps; how many rows.

    To find streams that are too long takes a look at their rows alone; for the age of their
    oldest change each must be looked up, so that is for now and then.
    """
    reached, gone = -1, 0
    while True:
        rows = await world.database.read(_ends(world, reached, aged=aged))
        for some in _portions(rows):
            gone += await world.apply(partial(_remove, some=some), *sorted(some))
        if len(rows) < STREAMS:
            return gone
        reached = rows[-1].id


def _ends(world: World, reached: int, *, aged: bool) -> Select[*tuple[Any, ...]]:
    """To read: the next streams that are too long or too old, and where what goes of each ends.

    That is None where all that is there waits to be read. Only whole changes go, from the first
    on, so that what stays has no gaps.
    """
    now, options = world.now(), world.options
    old = now - timedelta(days=options.journal_days)
    due = _due(_too_old(old) if aged else None, reached, options.journal_events)
    last, at = col(Change.last), col(Change.at)
    too_many = last <= due.c.last - options.journal_events
    unread = or_(*(last > due.c[_read(feed)] for feed in FEEDS))
    over = (at < old) | too_many
    late = (at < old - GRACE) | (too_many & (at < now - GRACE))
    mine = col(Change.stream_id) == due.c.id
    stays = select(last).where(mine, not_(over & (not_(unread) | late))).order_by(last).limit(1)
    found = select(due, stays.scalar_subquery().label("stays")).subquery()
    end = select(func.max(last)).where(
        col(Change.stream_id) == found.c.id, last < func.coalesce(found.c.stays, found.c.last + 1)
    )
    return select(found.c.id, found.c.gone, end.scalar_subquery().label("end")).order_by(found.c.id)


def _due(old: ColumnElement[bool] | None, reached: int, most: int) -> Any:
    """SQL: the next streams of which something may go, and how far each feed has read them."""
    stream = col(Stream.id)
    named = []
    for feed in FEEDS:
        number = func.coalesce(feed.read(stream).scalar_subquery(), 0)
        read = case((feed.heard(stream), number), else_=col(Stream.last))
        named.append(read.label(_read(feed)))
    many = col(Stream.last) - col(Stream.gone) > most
    asked = select(stream, col(Stream.last), col(Stream.gone), *named).where(stream > reached)
    asked = asked.where(many if old is None else many | old)
    return asked.order_by(stream).limit(STREAMS).subquery()


def _read(feed: Feed) -> str:
    return f"{feed.name}_read"


def _too_old(old: Any) -> ColumnElement[bool]:
    """SQL: streams whose first change is older than this."""
    mine = col(Change.stream_id) == col(Stream.id)
    first = select(col(Change.at)).where(mine).order_by(col(Change.last)).limit(1)
    return and_(col(Stream.last) > col(Stream.gone), first.scalar_subquery() < old)


def _portions(rows: Iterable[Picked]) -> Iterator[dict[int, int]]:
    """What units remove, one after the other: up to which event of which streams."""
    some: dict[int, int] = {}
    many = 0
    for row in rows:
        at = row.gone
        while row.end is not None and at < row.end:
            upto = min(at + ROUND, row.end)
            some[row.id], many, at = upto, many + upto - at, upto
            if many >= ROUND or len(some) == AT_ONCE:
                yield some
                some, many = {}, 0
    if some:
        yield some


def _remove(turn: Turn, some: Mapping[int, int]) -> int:
    """Remove the beginning of these streams, up to these events."""
    stream, last = col(Change.stream_id), col(Change.last)
    these = or_(*(and_(stream == key, last <= upto) for key, upto in some.items()))
    asked = select(stream, func.max(last).label("last"), func.max(col(Change.at)).label("at"))
    ends = turn.connection.execute(asked.where(these).group_by(stream)).all()
    if not ends:
        return 0
    table = table_of(Stream)
    further = update(table).where(table.c.id == bindparam("key"))
    further = further.values(gone=bindparam("end"), gone_at=bindparam("at"))
    removed = turn.connection.execute(delete(Change).where(these)).rowcount
    given = [{"key": row.stream_id, "end": row.last, "at": row.at} for row in ends]
    turn.connection.execute(further, given)
    return removed
