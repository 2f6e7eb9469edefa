"""What stands in the store, in numbers for whoever watches the server."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select, text
from sqlmodel import col

from models.certificates import Certificate
from models.messages.tables import Message
from models.queue.tables import DUE, OPEN, Delivery
from models.runtime.environment import World
from models.submission.tables import Submission

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
    expires: float | None = None  # seconds until the first certificate ends; None: there is none
    unissued: int = 0  # certificates that ACME has failed to make


async def standing(world: World) -> Standing:
    """Count it. A few reads by partial indexes that hold only what waits."""
    database, now = world.database, world.now()
    waiting = (
        select(col(Delivery.submission_id), col(Delivery.state))
        .where(text(f"deliveries.{OPEN}"))  # as the index of what waits has it
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
    # while somebody has one in hand it lies ahead; what is held is nobody's delay
    late = select(func.min(col(Delivery.next_at)).label("at")).where(text(DUE))
    line = select(func.min(col(Delivery.turn_at)).label("at")).where(
        col(Delivery.turn_at).is_not(None)
    )
    due = [*await database.read(late), *await database.read(line)]
    # NOT as the index of those that wait has it
    some = select(col(Message.id)).where(text("NOT messages.indexed")).limit(MOST).subquery()
    unindexed = await database.read(select(func.count().label("many")).select_from(some))
    ends, failing = await _certificates(world)
    at = min((row.at for row in due if row.at), default=None)
    return Standing(
        {str(row.state): row.many for row in states},
        {str(row.state): row.many for row in sent},
        max(0.0, (now - at).total_seconds()) if at else 0.0,
        unindexed[0].many,
        (ends - now).total_seconds() if ends else None,
        failing,
    )


async def _certificates(world: World) -> tuple[datetime | None, int]:
    """When the first of them ends, and how many ACME fails to make."""
    ends = select(func.min(col(Certificate.not_after)).label("at")).where(
        col(Certificate.chain).is_not(None)
    )
    failing = select(func.count().label("many")).where(col(Certificate.acme_failures) > 0)
    (first,), (many,) = await world.database.read(ends), await world.database.read(failing)
    return first.at, many.many
