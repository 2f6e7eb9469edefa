"""The occurrences that an invitation asks to book, within limits."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import icalendar
import recurring_ical_events
from icalendar.prop import vDuration, vRecur

from mail.mime.calendar_events import ContentLine
from mail.resources.event_times import EventTime
from mail.resources.invitation_parser import Invitation, InvitedComponent
from mail.resources.unbookable_event import UnbookableEvent

MAX_OCCURRENCES = 1000  # that one invitation books
HORIZON = timedelta(days=5 * 365)  # later occurrences are not booked
MAX_DURATION = timedelta(days=366)  # of one occurrence
MAX_PAST = timedelta(days=20 * 365)  # since the start of a series
MAX_LISTED_TIMES = MAX_OCCURRENCES  # in RDATE and EXDATE of all components
MAX_INTERVAL = 1000
MAX_RULE_LENGTH = 500  # characters
_RULE = re.compile(r"[A-Z]+=[A-Z0-9+,-]+(?:;[A-Z]+=[A-Z0-9+,-]+)*")
# By frequency: the parts that a rule can have. Other combinations can take seconds to expand.
_COMMON_PARTS = frozenset(("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"))
_TIME_PARTS = frozenset(("BYHOUR", "BYMINUTE", "BYSECOND"))  # with one value
_PARTS_BY_FREQUENCY = {
    "DAILY": frozenset(("BYDAY", "BYMONTH")),
    "WEEKLY": frozenset(("BYDAY", "BYMONTH")),
    "MONTHLY": frozenset(("BYDAY", "BYMONTH", "BYMONTHDAY", "BYSETPOS")),
    "YEARLY": frozenset(("BYDAY", "BYMONTH", "BYMONTHDAY", "BYSETPOS", "BYWEEKNO", "BYYEARDAY")),
}
_LARGEST_NUMBERS = {
    "BYMONTH": 12,
    "BYMONTHDAY": 31,
    "BYSETPOS": 366,
    "BYWEEKNO": 53,
    "BYYEARDAY": 366,
}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One occurrence to book, in UTC."""

    starts_at: datetime
    ends_at: datetime
    occurrence_at: datetime | None  # its planned start; None: the event doesn't recur
    sequence: int


@dataclass(frozen=True, slots=True)
class OccurrencePlan:
    """The occurrences of an invitation, and the time up to which an endless series is booked."""

    occurrences: Sequence[Occurrence]
    booked_until: datetime | None = None  # None: all occurrences are booked


def plan_occurrences(invitation: Invitation, now: datetime) -> OccurrencePlan:
    """Return the occurrences of a REQUEST that end in the future, by start.

    An endless series has those of the next five years, at most 1,000. Raises UnbookableEvent if
    the event is over, is not valid, or has an end beyond these limits.
    """
    try:
        return _plan_or_raise(invitation, now)
    except UnbookableEvent:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as problem:
        # the errors by which the libraries report times and rules that don't fit together
        raise UnbookableEvent("The times of the event are not valid.") from problem


def _plan_or_raise(invitation: Invitation, now: datetime) -> OccurrencePlan:
    components = invitation.components
    _require_few_listed_times(components)
    if not invitation.is_for_series and any(item.is_for_later_ones for item in components):
        raise UnbookableEvent("A change of all later occurrences requires the whole event.")
    calendar = icalendar.Calendar()
    for component in components:
        calendar.add_component(_event_with_bookable_times(invitation, component, now))
    main = invitation.main_component
    is_series = invitation.is_for_series and bool(main.repeated_lines)
    query = recurring_ical_events.of(calendar)
    horizon = now + HORIZON
    events = query.between(now, horizon)
    sequences = {
        invitation.times.utc_from_event_time(planned): component.sequence
        for component in components
        if (planned := invitation.recurrence_id_time_or_none(component)) is not None
    }
    found = [
        _occurrence(invitation, event, sequences, is_series=is_series)
        for event in events
        if str(event.get("STATUS", "")).upper() != "CANCELLED"
    ]
    occurrences = sorted(
        (item for item in found if item.ends_at > now and item.starts_at <= horizon),
        key=lambda item: (item.starts_at, item.ends_at),
    )
    if any(item.ends_at - item.starts_at > MAX_DURATION for item in occurrences):
        raise UnbookableEvent("An occurrence lasts longer than a year.")
    if _is_endless(main):
        booked = occurrences[:MAX_OCCURRENCES]
        return OccurrencePlan(_require_any(booked), booked[-1].ends_at if booked else None)
    if len(occurrences) > MAX_OCCURRENCES:
        raise UnbookableEvent(f"The event has more than {MAX_OCCURRENCES:,} occurrences.")
    if next(query.after(horizon + timedelta(seconds=1)), None) is not None:
        raise UnbookableEvent("The event has occurrences more than five years ahead.")
    return OccurrencePlan(_require_any(occurrences))


def _require_few_listed_times(components: Sequence[InvitedComponent]) -> None:
    """Raise UnbookableEvent if RDATE and EXDATE of the components list too many times."""
    listed_count = sum(
        line.value.count(",") + 1
        for component in components
        for line in component.repeated_lines
        if line.name in ("RDATE", "EXDATE")
    )
    if listed_count > MAX_LISTED_TIMES:
        raise UnbookableEvent("The event lists too many dates.")


def _require_any(occurrences: Sequence[Occurrence]) -> Sequence[Occurrence]:
    if not occurrences:
        raise UnbookableEvent("The event is over.")
    return occurrences


def _is_endless(component: InvitedComponent) -> bool:
    """True if a component has a rule without COUNT and UNTIL."""
    rules = [line.value.upper() for line in component.repeated_lines if line.name == "RRULE"]
    return any("COUNT=" not in rule and "UNTIL=" not in rule for rule in rules)


def _occurrence(
    invitation: Invitation, event: Any, sequences: Mapping[datetime, int], *, is_series: bool
) -> Occurrence:
    """Return the occurrence of an expanded event.

    `sequences` has the sequence numbers of changed occurrences by their planned start.
    """
    starts_at = invitation.times.utc_from_event_time(event["DTSTART"].dt)
    ends_at = invitation.times.utc_from_event_time(event["DTEND"].dt)
    planned = event.get("RECURRENCE-ID")
    occurrence_at = None
    if planned is not None and (is_series or not invitation.is_for_series):
        occurrence_at = invitation.times.utc_from_event_time(planned.dt)
    sequence = invitation.main_component.sequence
    if occurrence_at is not None:
        sequence = sequences.get(occurrence_at, sequence)
    return Occurrence(starts_at, max(ends_at, starts_at), occurrence_at, sequence)


def _event_with_bookable_times(
    invitation: Invitation, component: InvitedComponent, now: datetime
) -> icalendar.Event:
    """Return a component as an event of `icalendar`, with only the properties of its times.

    Raises UnbookableEvent if one is missing, invalid or beyond a limit.
    """
    event = icalendar.Event()
    event.add("uid", invitation.uid)
    event.add("sequence", component.sequence)
    start = _time_of(invitation, component, "DTSTART")
    if start is None:
        raise UnbookableEvent("The event has no start.")
    event.add("dtstart", start)
    end = _time_of(invitation, component, "DTEND")
    if end is not None:
        if isinstance(end, datetime) is not isinstance(start, datetime) or (
            invitation.times.utc_from_event_time(end) < invitation.times.utc_from_event_time(start)
        ):
            raise UnbookableEvent("The event ends before it starts.")
        event.add("dtend", end)
    elif "DURATION" in component.lines:
        text = component.lines["DURATION"].value.strip()
        duration = vDuration.from_ical(text)  # type: ignore[no-untyped-call]
        if duration < timedelta(0):
            raise UnbookableEvent("The event ends before it starts.")
        event.add("duration", duration)
    planned = invitation.recurrence_id_time_or_none(component)
    if planned is not None:
        parameters = {"RANGE": "THISANDFUTURE"} if component.is_for_later_ones else {}
        event.add("recurrence-id", planned, parameters=parameters)
    if component.is_cancelled:
        event.add("status", "CANCELLED")
    if component.repeated_lines:
        if invitation.times.utc_from_event_time(start) < now - MAX_PAST:
            raise UnbookableEvent("The series began more than 20 years ago.")
        _add_recurrence(invitation, component, event)
    return event


def _time_of(invitation: Invitation, component: InvitedComponent, name: str) -> EventTime | None:
    line = component.lines.get(name)
    return invitation.times.first_time_of_line(line) if line else None


def _add_recurrence(
    invitation: Invitation, component: InvitedComponent, event: icalendar.Event
) -> None:
    """Add RRULE, RDATE and EXDATE to an event. Raises UnbookableEvent."""
    rules = [line for line in component.repeated_lines if line.name == "RRULE"]
    if len(rules) > 1 or any(line.name == "EXRULE" for line in component.repeated_lines):
        raise UnbookableEvent("The event has more than one rule of recurrence.")
    for line in rules:
        event.add("rrule", vRecur.from_ical(_checked_rule(line)))
    for line in component.repeated_lines:
        if line.name in ("RDATE", "EXDATE"):
            add: Callable[..., Any] = event.add
            add(line.name.lower(), invitation.times.times_of_line(line))


def _checked_rule(line: ContentLine) -> str:
    """Return a rule that can be expanded in short time. Raises UnbookableEvent."""
    rule = line.value.strip().upper().rstrip(";")
    if len(rule) > MAX_RULE_LENGTH or not _RULE.fullmatch(rule):
        raise UnbookableEvent("The rule of recurrence is not valid.")
    pairs = [part.split("=", 1) for part in rule.split(";")]
    parts = dict(pairs)
    if len(parts) != len(pairs):
        raise UnbookableEvent("The rule of recurrence is not valid.")
    frequency = parts.get("FREQ", "")
    if frequency in ("SECONDLY", "MINUTELY", "HOURLY"):
        raise UnbookableEvent("The event recurs more than once a day.")
    allowed = _PARTS_BY_FREQUENCY.get(frequency, frozenset())
    if not parts.keys() <= _COMMON_PARTS | _TIME_PARTS | allowed:
        raise UnbookableEvent("The rule of recurrence is not supported.")
    if any("," in parts.get(name, "") for name in _TIME_PARTS):
        raise UnbookableEvent("The event recurs more than once a day.")
    if not 1 <= int(parts.get("INTERVAL", "1")) <= MAX_INTERVAL or not all(
        1 <= abs(int(number)) <= largest
        for name, largest in _LARGEST_NUMBERS.items()
        if name in parts
        for number in parts[name].split(",")
    ):
        raise UnbookableEvent("The rule of recurrence is not supported.")
    if not 1 <= int(parts.get("COUNT", "1")) <= MAX_OCCURRENCES:
        raise UnbookableEvent(f"The event has more than {MAX_OCCURRENCES:,} occurrences.")
    if parts.get("COUNT") and parts.get("UNTIL"):
        raise UnbookableEvent("The rule of recurrence is not valid.")
    return rule


def occurrence_times(invitation: Invitation) -> list[datetime]:
    """Return the planned starts of the occurrences that a message names by RECURRENCE-ID, in UTC.

    Raises UnbookableEvent if one is invalid or its time zone is unknown.
    """
    planned = [
        invitation.recurrence_id_time_or_none(component) for component in invitation.components
    ]
    return [invitation.times.utc_from_event_time(time) for time in planned if time is not None]
