"""What arrives in the queue, and what comes of attempts, as it happens, of all accounts.

It is read from the journals of the accounts themselves: whoever sends writes nothing more for
it, and holds no lock that others wait for.
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

STREAMS = 250  # read at once
MANY = 5000  # streams that have grown; if there are more, all are looked at


async def follow(ctx: Context, where: EntryWhere) -> AsyncGenerator[Picked]:
    """Yield entries that a filter finds, as they are after each change.

    Of one account in the order in which it happened. What happens to an entry several times
    while one reads is told as the last of it.
    """
    with ctx.world.wakeups.gather() as bell:
        at: dict[int, int] = {row.id: row.last for row in await _standing(ctx)}
        while True:
            grown: Collection[int] | None = bell.taken()
            if not grown:
                await rest([bell], LOOK)
                grown = bell.taken() or None  # none: a bell of another process may be lost
            async for ids in _changed(ctx, at, grown):
                ctx.forget()
                for row in await fitting(ctx, ids, where):
                    yield row


async def _standing(ctx: Context, grown: Collection[int] | None = None) -> Sequence[Picked]:
    """The newest number of all streams, or of these, and the newest that is no longer kept."""
    columns = (Stream.id, Stream.last, Stream.gone)
    asked = select(*map(col, columns)).order_by(col(Stream.id))
    if grown is not None:
        asked = asked.where(col(Stream.id).in_(sorted(grown)))
    return await ctx.read(asked)


async def _changed(
    ctx: Context, at: dict[int, int], grown: Collection[int] | None
) -> AsyncGenerator[Sequence[int]]:
    """Submissions that changed behind these places, which go on; a stream that is new begins."""
    if grown is not None and len(grown) > MANY:
        grown = None
    stand = await _standing(ctx, grown)
    for row in stand:  # what is no longer kept cannot be read: after a restore, all there was
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
    """Note how far these streams were read; what is left of them.

    Rows come stream by stream, as `journal.after` has it: where there may be more, all before
    the last are read as far as was asked.
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
