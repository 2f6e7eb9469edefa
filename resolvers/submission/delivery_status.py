"""How messages that were sent stand on their way, by their copies."""

from sqlalchemy import select
from sqlmodel import col

from models.store.columns import Picked, picked
from models.submission.tables import Submission
from resolvers.access import visible
from resolvers.context import Context
from resolvers.submission.create import deliveries_of


async def outbound(ctx: Context, ids: list[int]) -> list[list[tuple[Picked, list[Picked]]]]:
    """The viewer's submissions of these copies with their deliveries, the oldest first.

    Two statements, however many there are.
    """
    asked = select(*picked(Submission, {"id", "message_id", "queue_id"})).where(
        col(Submission.message_id).in_(ids), visible(ctx, Submission)
    )
    sent = await ctx.read(asked.order_by(col(Submission.created_at), col(Submission.id)))
    keys = [row.id for row in sent]
    entries = dict(zip(keys, await deliveries_of(ctx, keys), strict=True)) if keys else {}
    theirs: dict[int, list[tuple[Picked, list[Picked]]]] = {key: [] for key in ids}
    for row in sent:
        theirs[row.message_id].append((row, entries[row.id]))
    return [theirs[key] for key in ids]
