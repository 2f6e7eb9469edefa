"""Follow the queue entries of all users as they change.

It reads the journals of the users, so that senders write nothing more and hold no shared lock.
"""

from collections.abc import AsyncGenerator, Collection, Sequence

from sqlalchemy import select
from sqlmodel import col

from models.events import journal
from models.events.journal import ChangeKind, Stream
from models.events.wakeups import rest
from models.store.columns import Picked
from resolvers.changes.stream_reader import LOOK
from resolvers.context import Context
from resolvers.queue.loaders import EntryWhere, fitting

STREAMS = 250
MANY = 5000  # if more have changed, all streams are read


async def follow(ctx: Context, where: EntryWhere) -> AsyncGenerator[Picked]:
    """Yield the entries that meet the conditions after each change.

    Changes of one user keep their order. Several changes of an entry between two reads are
    reported as one.
    """
    with ctx.world.wakeups.gather() as bell:
        at: dict[int, int] = {row.id: row.last for row in await _standing(ctx)}
        while True:
            grown: Collection[int] | None = bell.taken()
            if not grown:
                await rest([bell], LOOK)
                grown = (
                    bell.taken() or None
                )  # None: read all, since a wake-up of another process can be lost
            async for ids in _changed(ctx, at, grown):
                ctx.forget()
                for row in await fitting(ctx, ids, where):
                    yield row


async def _standing(ctx: Context, grown: Collection[int] | None = None) -> Sequence[Picked]:
    """Load the last and the last deleted position of these streams, or of all."""
    columns = (Stream.id, Stream.last, Stream.gone)
    asked = select(*map(col, columns)).order_by(col(Stream.id))
    if grown is not None:
        asked = asked.where(col(Stream.id).in_(sorted(grown)))
    return await ctx.read(asked)


async def _changed(
    ctx: Context, at: dict[int, int], grown: Collection[int] | None
) -> AsyncGenerator[Sequence[int]]:
    """Yield the ids of submissions that changed after these positions, and advance them.

    A new stream is read from its beginning.
    """
    if grown is not None and len(grown) > MANY:
        grown = None
    stand = await _standing(ctx, grown)
    for row in stand:  # deleted changes can't be read, which after a restore are all
        at[row.id] = max(at.get(row.id, 0), row.gone)
    behind = [(row.id, row.last) for row in stand if row.last > at[row.id]]
    for start in range(0, len(behind), STREAMS):
        some = dict(behind[start : start + STREAMS])
        since = {key: at.get(key, 0) for key in some}
        while since:
            rows = await ctx.read(journal.after(since))
            found = list(journal.events(rows, since))
            told = (e.object_id for e in found if e.kind is ChangeKind.SUBMISSION_CHANGED)
            if ids := list(dict.fromkeys(told)):
                yield ids
            since = _onward(at, since, some, rows)


def _onward(
    at: dict[int, int], since: dict[int, int], to: dict[int, int], rows: Sequence[Picked]
) -> dict[int, int]:
    """Advance the positions to the last read changes; return the streams with unread changes.

    The changes are ordered by stream. If there can be more, all streams before the last are
    read completely.
    """
    read: dict[int, int] = {row.stream_id: row.last for row in rows}
    cut = rows[-1].stream_id if len(rows) >= journal.MOST else None
    for key, number in since.items():
        asked = number + journal.MOST + journal.LONGEST
        if cut is not None and key >= cut:
            at[key] = read.get(key, number)
        else:
            at[key] = max(read.get(key, number), to[key] if to[key] <= asked else number)
    return {key: at[key] for key in since if at[key] < to[key]}
