"""What stands in the store, in numbers for whoever watches the server."""

from dataclasses import dataclass, field

from sqlalchemy import func, select, text
from sqlmodel import col

from models.messages import Message
from models.queue import Delivery
from models.submission import Submission
from models.world import World

MOST = 10_000  # rows that are counted of each sort: a look must stay cheap, however much there is


@dataclass(frozen=True, slots=True)
class Standing:
    """What waits: counts stop at MOST, and of those counted are the shares of each state.

    `overdue` is how many seconds ago the first attempt that nobody has in hand was due.
    """

    deliveries: dict[str, int] = field(default_factory=dict)  # by state, one for each recipient
    submissions: dict[str, int] = field(default_factory=dict)  # by state
    overdue: float = 0.0
    unindexed: int = 0  # messages that the search will find by its scan only


async def standing(world: World) -> Standing:
    """Count it. A few reads by partial indexes that hold only what waits."""
    database, now = world.database, world.now()
    waiting = (
        select(col(Delivery.submission_id), col(Delivery.state))
        .where(col(Delivery.next_at).is_not(None))
        .limit(MOST)
        .subquery()
    )
    states = await database.read(
        select(waiting.c.state, func.count().label("many")).group_by(waiting.c.state)
    )
    sent = await database.read(
        select(col(Submission.state), func.count().label("many"))
        .where(col(Submission.id).in_(select(waiting.c.submission_id)))
        .group_by(col(Submission.state))
    )
    due = await database.read(
        select(func.min(col(Delivery.next_at)).label("at")).where(
            col(Delivery.next_at).is_not(None)  # while somebody has one in hand it lies ahead
        )
    )
    # NOT as the index of those that wait has it
    some = select(col(Message.id)).where(text("NOT messages.indexed")).limit(MOST).subquery()
    unindexed = await database.read(select(func.count().label("many")).select_from(some))
    at = due[0].at
    return Standing(
        {str(row.state): row.many for row in states},
        {str(row.state): row.many for row in sent},
        max(0.0, (now - at).total_seconds()) if at else 0.0,
        unindexed[0].many,
    )
