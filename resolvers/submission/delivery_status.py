"""Read the delivery status of sent messages by their stored copies."""

from sqlalchemy import select
from sqlmodel import col

from models.store.columns import Picked, picked
from models.submission.tables import Submission
from resolvers.access import visible
from resolvers.context import Context
from resolvers.submission.create import deliveries_of


async def outbound(ctx: Context, ids: list[int]) -> list[list[tuple[Picked, list[Picked]]]]:
    """Load the viewer's submissions of each stored copy with their queue entries, oldest first.

    Needs two statements for any number of messages.
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
