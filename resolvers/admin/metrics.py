"""Figures about the stored data for operators' metrics."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select, text
from sqlmodel import col

from models.certificates import Certificate
from models.messages.tables import Message
from models.queue.tables import DUE, OPEN, Delivery
from models.runtime.environment import World
from models.submission.tables import Submission

MOST = 10_000  # per kind, so that the queries stay cheap


@dataclass(frozen=True, slots=True)
class Standing:
    """Counts of waiting rows. Counting stops at MAX_COUNTED_ROWS; states are shares of that.

    `overdue` is the number of seconds since the first unleased attempt was due.
    """

    deliveries: dict[str, int] = field(default_factory=dict)  # recipients by state
    submissions: dict[str, int] = field(default_factory=dict)  # by state
    overdue: float = 0.0
    unindexed: int = 0  # found by a scan only
    expires: float | None = (
        None  # seconds until the first certificate expires; None without certificates
    )
    unissued: int = 0  # ACME failed to issue them


async def standing(world: World) -> Standing:
    """Read the backlog figures with a few queries on partial indexes of waiting rows."""
    database, now = world.database, world.now()
    waiting = (
        select(col(Delivery.submission_id), col(Delivery.state))
        .where(text(f"deliveries.{OPEN}"))  # the same condition as the partial index
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
    # it is in the future while a worker has a lease; held entries do not count
    late = select(func.min(col(Delivery.next_at)).label("at")).where(text(DUE))
    line = select(func.min(col(Delivery.turn_at)).label("at")).where(
        col(Delivery.turn_at).is_not(None)
    )
    due = [*await database.read(late), *await database.read(line)]
    # the same NOT condition as the partial index
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
    """Return when the first certificate expires, and how many certificates ACME fails to issue."""
    ends = select(func.min(col(Certificate.not_after)).label("at")).where(
        col(Certificate.chain).is_not(None)
    )
    failing = select(func.count().label("many")).where(col(Certificate.acme_failures) > 0)
    (first,), (many,) = await world.database.read(ends), await world.database.read(failing)
    return first.at, many.many
