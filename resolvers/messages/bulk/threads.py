"""Changes of whole threads."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import col

from models.errors import Invalid, all_found
from models.messages.tables import Message, Thread
from models.store.columns import Picked, picked
from models.store.query_hints import without_index
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_changes import Done, Order
from resolvers.messages.bulk.mute import mute
from resolvers.messages.bulk.row_changes import Changes
from resolvers.messages.filters.filter_conditions import Selection
from resolvers.messages.loaders import here

IDS = 250  # per request


@dataclass(frozen=True, slots=True)
class ThreadOrder:
    """Changes of threads: of their messages in mailboxes, and of the mute state."""

    ids: Sequence[int]
    changes: Changes | None = None
    muted: bool | None = None


async def carry_out(ctx: Context, order: ThreadOrder) -> Done:
    """Change threads: all or none in one transaction.

    If they have many messages, a task changes them, without undo. Raises InvalidInput, and NotFound
    with its index for a thread without visible messages.
    """
    changes = None if order.changes is None or order.changes.nothing else order.changes
    if changes is None and order.muted is None:
        raise Invalid("say what to change", constraint="required", path=["set"])
    user_id = own(ctx)
    async with ctx.write(user_id) as session:
        rows = await _rows(ctx, order.ids)
        statement = select(col(Message.id)).where(
            without_index(visible(ctx, Message)), here(), col(Message.thread_id).in_(order.ids)
        )
        ids = [row.id for row in await ctx.read(statement.order_by(col(Message.id)))]
        was: dict[int, bool] = {}
        if order.muted is not None:
            was = {row.id: row.muted for row in rows}
            await mute(ctx, session, dict.fromkeys(was, order.muted))
        later = changes is not None and len(ids) > ctx.world.options.bulk
        what = Order(Selection(ids=ids), changes, later=later, muted=was)
        return await bulk_changes.carry_out(ctx, what)


async def _rows(ctx: Context, ids: Sequence[int]) -> Sequence[Picked]:
    some = select(col(Message.id)).where(col(Message.thread_id) == col(Thread.id), here())
    statement = select(*picked(Thread)).where(
        visible(ctx, Thread), col(Thread.id).in_(ids), some.exists()
    )
    rows = {row.id: row for row in await ctx.read(statement)}
    all_found(ids, rows)
    return list(rows.values())
