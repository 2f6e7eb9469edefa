"""Destination pacing: delivery slots per minute, and pauses for destinations that do not answer.

Each process knows by its own attempts which destinations do not answer. Delivery slots are in the
database, so all processes share them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import bindparam, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryResult
from models.queue.tables import DestinationSlot
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import UtcDateTime, insert_with_conflict
from models.store.prepared_statements import PreparedStatement, SqlStatement, prepare_cached

FIRST_PAUSE = 5.0  # seconds; it doubles with each failure
MAX_PAUSE = 300.0  # seconds
MAX_SLOT_WAIT = 2.0  # seconds; for a later slot the recipients return to the queue
MAX_PAUSED_DESTINATIONS = 10_000  # in one process


@dataclass
class PausedDestination:
    """A destination that does not answer."""

    paused_until: float  # of the monotonic clock
    pause: float  # seconds
    attempted_at: datetime  # start of the last attempt
    result: DeliveryResult  # result of the last attempt


@dataclass
class DestinationPacing:
    """The destinations that do not answer. `clock` is monotonic and returns seconds."""

    clock: Callable[[], float]
    paused: dict[str, PausedDestination] = field(default_factory=dict)

    def paused_result_or_none(
        self, destination: str, flushed_at: datetime | None = None
    ) -> DeliveryResult | None:
        """The result for recipients of a paused destination. None if it can be attempted.

        A flush after the last attempt overrides the pause.
        """
        entry = self.paused.get(destination)
        seconds_left = entry.paused_until - self.clock() if entry else 0.0
        if entry is None or seconds_left <= 0 or (flushed_at and entry.attempted_at < flushed_at):
            return None
        return replace(entry.result, paused_for=timedelta(seconds=seconds_left))

    def pause_destination(
        self, destination: str, result: DeliveryResult, attempted_at: datetime
    ) -> None:
        """Pause a destination that did not answer. The pause doubles with each failure."""
        entry = self.paused.pop(destination, None)
        pause = min(entry.pause * 2, MAX_PAUSE) if entry else FIRST_PAUSE
        self.paused[destination] = PausedDestination(
            self.clock() + pause, pause, attempted_at, result
        )
        if len(self.paused) > MAX_PAUSED_DESTINATIONS:
            del self.paused[next(iter(self.paused))]

    def end_pause(self, destination: str) -> None:
        """End the pause of a destination."""
        self.paused.pop(destination, None)


async def reserve_slot_and_get_wait_seconds(
    environment: Environment, destination: str, per_minute: int
) -> float:
    """Reserve a delivery slot. Returns the seconds until the slot.

    If these are at least `MAX_SLOT_WAIT`, the caller must return the recipients to the queue.
    """
    interval = timedelta(minutes=1) / per_minute

    def reserve_slot(transaction: DatabaseTransaction) -> timedelta:
        now = environment.now()
        (row,) = transaction.fetch_rows(
            _insert_or_lock_slot_statement(transaction.connection.dialect.name),
            destination=destination,
            now=now,
        )
        time_until_free: timedelta = row.free_at - now
        correction = (
            time_until_free
            if time_until_free > timedelta(seconds=MAX_SLOT_WAIT) + interval
            else timedelta(0)
        )
        # corrects slots from before the clock was set back
        first = row.free_at - correction
        last = row.until - correction
        slot_at: datetime = max(first, now)
        if slot_at - now < timedelta(seconds=MAX_SLOT_WAIT):
            free_at, until = slot_at + interval, max(last, slot_at + interval)
        else:
            slot_at = max(last, slot_at)
            free_at, until = first, slot_at + interval
        transaction.execute_statements(
            [(_UPDATE_SLOTS, {"of": destination, "free": free_at, "last": until})]
        )
        return slot_at - now

    return (await environment.run_transaction(reserve_slot)).total_seconds()


@prepare_cached
def _insert_or_lock_slot_statement(dialect: str) -> SqlStatement:
    """Statement that inserts or locks the slot row of a destination and returns it."""
    now = bindparam("now", type_=UtcDateTime())
    insertion = insert_with_conflict(dialect, DestinationSlot).values(
        destination=bindparam("destination"), free_at=now, until=now
    )
    upsert = insertion.on_conflict_do_update(
        index_elements=["destination"], set_={"destination": insertion.excluded.destination}
    )
    statement: SqlStatement = upsert.returning(
        col(DestinationSlot.free_at), col(DestinationSlot.until)
    )
    return statement


_UPDATE_SLOTS = PreparedStatement(
    update(DestinationSlot)
    .where(col(DestinationSlot.destination) == bindparam("of"))
    .values(
        free_at=bindparam("free", type_=UtcDateTime()), until=bindparam("last", type_=UtcDateTime())
    )
)
