"""Delete old journal entries: by age, by number, and after webhooks and push have read them."""

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

STREAMS = 5000
ROUND = 1000
AT_ONCE = 50  # each stream is locked
GRACE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Feed:
    """A reader of the journal with its own position in each stream.

    `select_read_position` selects the last position that was read, or NULL. `is_followed` is an SQL
    condition: the reader waits for events of the stream.
    """

    name: str
    read: Callable[[Mapped[int]], Select[int]]
    heard: Callable[[Mapped[int]], ColumnElement[bool]]


# Entries that one of these has not read are kept for UNREAD_GRACE longer. A reader detects
# deleted entries by `Stream.gone`.
FEEDS = (
    Feed("webhooks", webhooks.read, webhooks.heard),
    Feed("push", push_channels.read, push_channels.heard),
)


async def trim(world: World, *, aged: bool = True) -> int:
    """Delete journal entries above the number limit, and with `by_age` old ones.

    Returns the number of rows. The check by age looks up the oldest entry of each stream, so it is
    for rare runs.
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
    """Select the next streams to shorten, with the last position to delete.

    That is NULL if all entries are unread. Entries are deleted from the beginning only, so the rest
    has no gaps.
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
    """Subquery: the next streams with entries to delete, and the position of each reader."""
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
    """SQL: the first entry of the stream is older than this."""
    mine = col(Change.stream_id) == col(Stream.id)
    first = select(col(Change.at)).where(mine).order_by(col(Change.last)).limit(1)
    return and_(col(Stream.last) > col(Stream.gone), first.scalar_subquery() < old)


def _portions(rows: Iterable[Picked]) -> Iterator[dict[int, int]]:
    """The deletions of one transaction each: the last position to delete, by stream id."""
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
    """Delete the entries of these streams up to these positions. Returns the number of rows."""
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
