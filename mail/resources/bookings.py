"""Booking of resources inside a transaction that locks the stream of their domain.

The rows of one event at one resource share `series_key`. One of them has no `occurrence_at`: it
is the booking of an event without recurrence, or keeps the sequence number of the event.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, func, insert, select, text
from sqlmodel import col

from mail.resources.occurrences import HORIZON, MAX_DURATION, Occurrence
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.resources.tables import (
    IS_BOOKED,
    IS_RELEASED,
    Booking,
    BookingPolicy,
    BookingState,
    Resource,
)
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table, select_columns

MAX_BOOKINGS = 100_000  # of one resource; also of its rows without booking
MAX_RELEASED_OF_ORGANIZER = 1000  # rows without booking at one resource; the oldest are deleted
BUSY_TEXT = "The resource is not free at this time."
SERIES_BUSY_TEXT = "The resource is not free at the time of each occurrence."
FULL_TEXT = "The resource has too many bookings."


class BookingResult(StrEnum):
    """The result of an invitation."""

    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    RELEASED = "RELEASED"  # cancelled
    OUTDATED = "OUTDATED"  # a newer message about the event came before
    REPEATED = "REPEATED"  # the same message was delivered before


@dataclass(frozen=True, slots=True)
class BookingEvent:
    """The event of an invitation to a resource, with the version of the invitation."""

    resource_id: int
    uid: str
    organizer: str  # in the form of `address_key`
    sequence: int
    stamped_at: datetime
    is_whole: bool  # False: only single occurrences of a series
    organizer_name: str | None = None
    organizer_user_id: int | None = None
    summary: str | None = None

    @property
    def series_key(self) -> str:
        """The digest of UID and organizer: nobody else can change the bookings of an organizer."""
        return hashlib.sha256(f"{self.organizer}\0{self.uid}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class BookingDecision:
    """The result of an invitation, and the reason if it is declined."""

    result: BookingResult
    reason: str = ""


def book_or_decline(
    transaction: DatabaseTransaction,
    event: BookingEvent,
    occurrences: Sequence[Occurrence],
    unbookable_reason: str | None,
) -> BookingDecision:
    """Book all occurrences of a REQUEST or none, instead of what the event had booked before.

    With an `unbookable_reason`, none. Raises NotFound if the resource is deleted or not active.
    """
    resource = _require_active_resource(transaction, event.resource_id)
    rows = _rows_of_series(transaction, event)
    planned_times = {item.occurrence_at for item in occurrences if item.occurrence_at}
    if _is_outdated(event, rows, planned_times):
        return BookingDecision(BookingResult.OUTDATED)
    replaced = [row for row in rows if event.is_whole or row.occurrence_at in planned_times]
    _delete_rows(transaction, replaced)
    reason = unbookable_reason or _reason_to_decline(transaction, resource, occurrences)
    if reason is None:
        new_rows = [_booking_row(transaction, event, item) for item in occurrences]
        if event.is_whole and planned_times:
            new_rows.append(_released_row(transaction, event, None, occurrences[-1].ends_at))
    elif event.is_whole:
        new_rows = [_released_row(transaction, event, None)]
    else:
        new_rows = [_released_row(transaction, event, at) for at in sorted(planned_times)]
    _insert_rows_and_record_change(transaction, resource, replaced, new_rows)
    if reason is None:
        return BookingDecision(BookingResult.ACCEPTED)
    return BookingDecision(BookingResult.DECLINED, reason)


def release_bookings(
    transaction: DatabaseTransaction,
    event: BookingEvent,
    cancelled_times: Collection[datetime],
    released_from: datetime | None,
) -> BookingDecision:
    """Release what a CANCEL names: the whole event, or the occurrences planned at these times.

    `released_from` also releases all occurrences planned then or later. Raises NotFound if the
    resource is deleted or not active.
    """
    resource = _require_active_resource(transaction, event.resource_id)
    rows = _rows_of_series(transaction, event)
    if _is_outdated(event, rows, cancelled_times):
        return BookingDecision(BookingResult.OUTDATED)
    released = [
        row
        for row in rows
        if event.is_whole
        or row.occurrence_at in cancelled_times
        or (released_from and row.occurrence_at and row.occurrence_at >= released_from)
    ]
    _delete_rows(transaction, released)
    times: Iterable[datetime | None] = [None] if event.is_whole else sorted(cancelled_times)
    new_rows = [_released_row(transaction, event, at) for at in times]
    _insert_rows_and_record_change(transaction, resource, released, new_rows)
    return BookingDecision(BookingResult.RELEASED)


def has_booking_of_active_resource(transaction: DatabaseTransaction, event: BookingEvent) -> bool:
    """Return True if the event has booked the resource for a time that is not over.

    Raises NotFound if the resource is deleted or not active.
    """
    _require_active_resource(transaction, event.resource_id)
    now = transaction.environment.now()
    return any(
        row.state is BookingState.BOOKED and row.ends_at > now
        for row in _rows_of_series(transaction, event)
    )


def is_within_booking_limit(
    booked: Iterable[tuple[datetime, datetime]],
    wanted: Iterable[tuple[datetime, datetime]],
    limit: int,
) -> bool:
    """Return True if at most `limit` bookings overlap at any time of the wanted ones.

    A booking that begins when another ends does not overlap with it.
    """
    steps: list[tuple[datetime, int, bool]] = []
    for is_wanted, intervals in ((False, booked), (True, wanted)):
        for start, end in intervals:
            if start < end:
                steps += [(start, 1, is_wanted), (end, -1, is_wanted)]
    count = wanted_count = 0
    for _, change, is_wanted in sorted(steps):  # at one time, ends come first
        count += change
        wanted_count += change if is_wanted else 0
        if wanted_count and count > limit:
            return False
    return True


def _require_active_resource(transaction: DatabaseTransaction, resource_id: int) -> ColumnRow:
    statement = select(*select_columns(Resource)).where(
        col(Resource.id) == resource_id, col(Resource.active)
    )
    row: ColumnRow | None = transaction.connection.execute(statement).first()
    if row is None:
        raise NotFound(str(resource_id), path=["address"])
    return row


def _rows_of_series(transaction: DatabaseTransaction, event: BookingEvent) -> Sequence[Any]:
    """Return the bookings of the resource for the series of the event."""
    statement = select(*select_columns(Booking)).where(
        col(Booking.resource_id) == event.resource_id, col(Booking.series_key) == event.series_key
    )
    return transaction.connection.execute(statement).all()


def _is_outdated(
    event: BookingEvent, rows: Sequence[Any], planned_times: Collection[datetime]
) -> bool:
    """Return True if a newer message about the event, or about an occurrence, came before."""
    version = event.sequence, event.stamped_at
    for row in rows:
        if row.occurrence_at is None:
            stored = row.sequence, row.stamped_at
            if version < stored if event.is_whole else event.sequence < row.sequence:
                return True
        elif (
            not event.is_whole
            and row.occurrence_at in planned_times
            and version < (row.sequence, row.stamped_at)
        ):
            return True
    return False


def _reason_to_decline(
    transaction: DatabaseTransaction, resource: ColumnRow, occurrences: Sequence[Occurrence]
) -> str | None:
    """Return why the policy of a resource does not allow the occurrences, None if it does."""
    if _count_rows(transaction, resource, IS_BOOKED) + len(occurrences) > MAX_BOOKINGS:
        return FULL_TEXT
    if resource.booking_policy is not BookingPolicy.LIMITED:
        return None
    first = min(item.starts_at for item in occurrences)
    last = max(item.ends_at for item in occurrences)
    booked = select(col(Booking.starts_at), col(Booking.ends_at)).where(
        col(Booking.resource_id) == resource.id,
        text(f"bookings.{IS_BOOKED}"),  # as in the partial index
        col(Booking.starts_at) >= first - MAX_DURATION,
        col(Booking.starts_at) < last,
        col(Booking.ends_at) > first,
    )
    intervals = [
        (row.starts_at, row.ends_at) for row in transaction.connection.execute(booked).all()
    ]
    wanted = [(item.starts_at, item.ends_at) for item in occurrences]
    if is_within_booking_limit(intervals, wanted, resource.booking_limit or 1):
        return None
    return BUSY_TEXT if len(occurrences) == 1 else SERIES_BUSY_TEXT


def _delete_rows(transaction: DatabaseTransaction, rows: Sequence[Any]) -> None:
    if rows:
        table = core_table(Booking)
        deletion = delete(table).where(table.c.id.in_([row.id for row in rows]))
        transaction.connection.execute(deletion)


def _count_rows(transaction: DatabaseTransaction, resource: ColumnRow, condition: str) -> int:
    """Count the bookings of a resource that meet the condition of a partial index."""
    statement = select(func.count()).where(
        col(Booking.resource_id) == resource.id, text(f"bookings.{condition}")
    )
    count: int = transaction.connection.execute(statement).scalar_one()
    return count


def _insert_rows_and_record_change(
    transaction: DatabaseTransaction,
    resource: ColumnRow,
    deleted_rows: Sequence[Any],
    new_rows: Sequence[dict[str, Any]],
) -> None:
    """Insert rows, and record the change in the domain of the resource.

    Rows without booking are left out if the resource has too many of them.
    """
    connection, environment = transaction.connection, transaction.environment
    inserted = [row for row in new_rows if row["state"] is BookingState.BOOKED]
    released = [row for row in new_rows if row["state"] is BookingState.RELEASED]
    if _count_rows(transaction, resource, IS_RELEASED) + len(released) <= MAX_BOOKINGS:
        inserted += released
    if inserted:
        connection.execute(insert(core_table(Booking)), inserted)
    if released:
        _delete_excess_released_rows(transaction, resource, released[0]["organizer"])
    is_changed = any(row["state"] is BookingState.BOOKED for row in new_rows) or any(
        row.state is BookingState.BOOKED for row in deleted_rows
    )
    if is_changed:
        entry = JournalEntry(EventType.RESOURCE_UPDATED, [resource.id])
        transaction.record_entry(resource.domain_id, entry, at=environment.now())


def _delete_excess_released_rows(
    transaction: DatabaseTransaction, resource: ColumnRow, organizer: str
) -> None:
    """Delete the RELEASED rows of an organizer at a resource, except the newest."""
    table = core_table(Booking)
    excess = (
        select(col(Booking.id))
        .where(
            col(Booking.resource_id) == resource.id,
            col(Booking.organizer) == organizer,
            text(f"bookings.{IS_RELEASED}"),
        )
        .order_by(col(Booking.id).desc())
        .offset(MAX_RELEASED_OF_ORGANIZER)
    )
    transaction.connection.execute(delete(table).where(table.c.id.in_(excess)))


def _booking_row(
    transaction: DatabaseTransaction, event: BookingEvent, occurrence: Occurrence
) -> dict[str, Any]:
    """Return the column values of a booking."""
    return _common_values(transaction, event) | {
        "occurrence_at": occurrence.occurrence_at,
        "sequence": occurrence.sequence,
        "state": BookingState.BOOKED,
        "starts_at": occurrence.starts_at,
        "ends_at": occurrence.ends_at,
    }


def _released_row(
    transaction: DatabaseTransaction,
    event: BookingEvent,
    occurrence_at: datetime | None,
    kept_until: datetime | None = None,
) -> dict[str, Any]:
    """Return the column values of a row that only keeps the version of the last message."""
    now = transaction.environment.now()
    ends_at = min(max(now, kept_until or now, occurrence_at or now), now + HORIZON)
    return _common_values(transaction, event) | {
        "occurrence_at": occurrence_at,
        "sequence": event.sequence,
        "state": BookingState.RELEASED,
        "starts_at": ends_at,
        "ends_at": ends_at,
    }


def _common_values(transaction: DatabaseTransaction, event: BookingEvent) -> dict[str, Any]:
    return {
        "id": transaction.environment.new_id(),
        "resource_id": event.resource_id,
        "series_key": event.series_key,
        "uid": event.uid,
        "stamped_at": event.stamped_at,
        "organizer": event.organizer,
        "organizer_name": event.organizer_name,
        "organizer_user_id": event.organizer_user_id,
        "summary": event.summary,
        "created_at": transaction.environment.now(),
    }
