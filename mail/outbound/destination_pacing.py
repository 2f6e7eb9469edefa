"""How fast mail goes to one place: so many messages in a minute, and not at all to who is down.

Who is down each process finds out by itself. Turns are shared by all: the store keeps them.
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

FIRST = 5.0  # seconds for which a place that does not answer is left alone
LONGEST = 300.0  # the most of it: it doubles with each time
WAITED = 2.0  # seconds that are waited for a turn; more is put off
PLACES = 10_000  # that are remembered


@dataclass
class Down:
    """A place that does not answer."""

    until: float
    wait: float
    asked_at: datetime  # when the last attempt began
    result: Result  # what came of it


@dataclass
class Pacing:
    """Which places are down. `clock` is one that only runs forwards."""

    clock: Callable[[], float]
    down: dict[str, Down] = field(default_factory=dict)

    def dead(self, place: str, hurried_at: datetime | None = None) -> Result | None:
        """Why nothing is sent there now, and for how long, where it was down a moment ago.

        What is in a hurry since then is sent in spite of that.
        """
        known = self.down.get(place)
        left = known.until - self.clock() if known else 0.0
        if known is None or left <= 0 or (hurried_at and known.asked_at < hurried_at):
            return None
        return replace(known.result, alone=timedelta(seconds=left))

    def failed(self, place: str, result: Result, asked_at: datetime) -> None:
        """Nobody answers there."""
        known = self.down.pop(place, None)
        wait = min(known.wait * 2, LONGEST) if known else FIRST
        self.down[place] = Down(self.clock() + wait, wait, asked_at, result)
        if len(self.down) > PLACES:
            del self.down[next(iter(self.down))]

    def answered(self, place: str) -> None:
        """It is there again."""
        self.down.pop(place, None)


async def turn(world: World, place: str, per_minute: int) -> float:
    """Seconds to wait for a turn, which is taken then; from `WAITED` on it is to be put off."""
    gap = timedelta(minutes=1) / per_minute

    def unit(turn: Turn) -> timedelta:
        now = world.now()
        (row,) = turn.fetched(_held(turn.connection.dialect.name), place=place, now=now)
        ahead: timedelta = row.free_at - now
        back = ahead if ahead > timedelta(seconds=WAITED) + gap else timedelta(0)
        first, last = row.free_at - back, row.until - back  # the clock was set back
        at: datetime = max(first, now)
        if at - now < timedelta(seconds=WAITED):
            free_at, until = at + gap, max(last, at + gap)
        else:
            at = max(last, at)
            free_at, until = first, at + gap
        turn.send([(_GIVEN, {"of": place, "free": free_at, "last": until})])
        return at - now

    return (await world.apply(unit)).total_seconds()


@prepared
def _held(dialect: str) -> Made:
    """The turns of a place, which nobody else takes meanwhile."""
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
