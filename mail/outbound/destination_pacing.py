"""Destination pacing: delivery slots per minute, and pauses for destinations that do not answer.

Each process knows by its own attempts which destinations do not answer. Delivery slots are in the
database, so all processes share them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import bindparam, update
from sqlmodel import col

from mail.envelope.delivery_jobs import Result
from models.queue.tables import PlaceTurn
from models.runtime.environment import Turn, World
from models.store.columns import Instant, insert_or
from models.store.prepared_statements import Made, Prepared, prepared

FIRST = 5.0  # seconds; it doubles with each failure
LONGEST = 300.0  # seconds
WAITED = 2.0  # seconds; for a later slot the recipients return to the queue
PLACES = 10_000  # in one process


@dataclass
class Down:
    """A destination that does not answer."""

    until: float  # of the monotonic clock
    wait: float  # seconds
    asked_at: datetime  # start of the last attempt
    result: Result  # result of the last attempt


@dataclass
class Pacing:
    """The destinations that do not answer. `clock` is monotonic and returns seconds."""

    clock: Callable[[], float]
    down: dict[str, Down] = field(default_factory=dict)

    def dead(self, place: str, hurried_at: datetime | None = None) -> Result | None:
        """The result for recipients of a paused destination. None if it can be attempted.

        A flush after the last attempt overrides the pause.
        """
        known = self.down.get(place)
        left = known.until - self.clock() if known else 0.0
        if known is None or left <= 0 or (hurried_at and known.asked_at < hurried_at):
            return None
        return replace(known.result, alone=timedelta(seconds=left))

    def failed(self, place: str, result: Result, asked_at: datetime) -> None:
        """Pause a destination that did not answer. The pause doubles with each failure."""
        known = self.down.pop(place, None)
        wait = min(known.wait * 2, LONGEST) if known else FIRST
        self.down[place] = Down(self.clock() + wait, wait, asked_at, result)
        if len(self.down) > PLACES:
            del self.down[next(iter(self.down))]

    def answered(self, place: str) -> None:
        """End the pause of a destination."""
        self.down.pop(place, None)


async def turn(world: World, place: str, per_minute: int) -> float:
    """Reserve a delivery slot. Returns the seconds until the slot.

    If these are at least `MAX_SLOT_WAIT`, the caller must return the recipients to the queue.
    """
    gap = timedelta(minutes=1) / per_minute

    def reserve(turn: Turn) -> timedelta:
        now = world.now()
        (row,) = turn.fetched(_held(turn.connection.dialect.name), place=place, now=now)
        ahead: timedelta = row.free_at - now
        back = ahead if ahead > timedelta(seconds=WAITED) + gap else timedelta(0)
        first, last = (
            row.free_at - back,
            row.until - back,
        )  # corrects slots from before the clock was set back
        at: datetime = max(first, now)
        if at - now < timedelta(seconds=WAITED):
            free_at, until = at + gap, max(last, at + gap)
        else:
            at = max(last, at)
            free_at, until = first, at + gap
        turn.send([(_GIVEN, {"of": place, "free": free_at, "last": until})])
        return at - now

    return (await world.apply(reserve)).total_seconds()


@prepared
def _held(dialect: str) -> Made:
    """Statement that inserts or locks the slot row of a destination and returns it."""
    now = bindparam("now", type_=Instant())
    new = insert_or(dialect, PlaceTurn).values(place=bindparam("place"), free_at=now, until=now)
    kept = new.on_conflict_do_update(index_elements=["place"], set_={"place": new.excluded.place})
    made: Made = kept.returning(col(PlaceTurn.free_at), col(PlaceTurn.until))
    return made


_GIVEN = Prepared(
    update(PlaceTurn)
    .where(col(PlaceTurn.place) == bindparam("of"))
    .values(free_at=bindparam("free", type_=Instant()), until=bindparam("last", type_=Instant()))
)
