"""Times and time zones of invited events.

The time zones are not given to `icalendar`: it would expand the rules of a VTIMEZONE without
limit, and keep the zone under its name for all later messages.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

from mail.mime.calendar_events import ContentLine
from mail.mime.time_zones import CalendarTimeZone, iana_zone_or_none
from mail.resources.unbookable_event import UnbookableEvent

_DATE_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?")
_FIRST_YEAR, _LAST_YEAR = 1970, 2200  # of the times of events
_MAX_ZONE_NAME_LENGTH = 200
_MAX_OBSERVANCES = 10  # of a VTIMEZONE; each one makes the expansion of a series slower
_MAX_CACHED_OFFSETS = 8192
_LAST_SECOND = 59  # a leap second counts as the second before

EventTime = date | datetime  # a date, or an aware datetime


class VtimezoneInfo(tzinfo):
    """The tzinfo of a VTIMEZONE."""

    def __init__(self, name: str, zone: CalendarTimeZone) -> None:
        self._name = name
        # the expansion of a series asks several times for the offset of a time
        self._utc_from_local = lru_cache(_MAX_CACHED_OFFSETS)(zone.utc_from_local)

    def utcoffset(self, local_time: datetime | None) -> timedelta:
        """Return the offset of a local time from UTC."""
        if local_time is None:
            return timedelta(0)
        naive = local_time.replace(tzinfo=None)
        utc = self._utc_from_local(naive)
        return timedelta(0) if utc is None else naive - utc.replace(tzinfo=None)

    def dst(self, _local_time: datetime | None) -> timedelta:
        """Return 0: the offset includes daylight saving time."""
        return timedelta(0)

    def tzname(self, _local_time: datetime | None) -> str:
        """Return the name of the zone."""
        return self._name

    def fromutc(self, utc_time: datetime) -> datetime:
        """Convert a UTC time that has this zone as tzinfo to a local time."""
        offset = self.utcoffset(utc_time + self.utcoffset(utc_time))
        return utc_time + offset


class EventTimeReader:
    """Reads the times of a calendar, by its time zones.

    Times without a zone are in the default zone: X-WR-TIMEZONE, else the only zone of the calendar.
    """

    def __init__(
        self, calendar_zones: Mapping[str, CalendarTimeZone], default_zone_name: str
    ) -> None:
        self._calendar_zones = calendar_zones
        names = [default_zone_name] if default_zone_name else list(calendar_zones)
        self.default_zone = self._find_zone(names[0]) if len(names) == 1 else None

    def times_of_line(self, line: ContentLine) -> list[EventTime]:
        """Return the times of a property, such as DTSTART or EXDATE.

        Raises UnbookableEvent if one is invalid or its time zone is unknown.
        """
        zone_name = line.parameters.get("TZID", "")
        zone = self._find_zone(zone_name) if zone_name else self.default_zone
        return [_parse_time(text, zone, zone_name) for text in line.value.strip().split(",")]

    def first_time_of_line(self, line: ContentLine) -> EventTime:
        """Return the first time of a property that has one. Raises UnbookableEvent."""
        return self.times_of_line(replace(line, value=line.value.strip().split(",", 1)[0]))[0]

    def utc_from_event_time(self, event_time: EventTime) -> datetime:
        """Return a time in UTC. A date begins at midnight of the default zone, else of UTC.

        Raises UnbookableEvent if the time has no UTC time.
        """
        if not isinstance(event_time, datetime):
            event_time = datetime.combine(event_time, time(), self.default_zone or UTC)
        elif event_time.tzinfo is None:
            event_time = event_time.replace(tzinfo=self.default_zone or UTC)
        try:
            return event_time.astimezone(UTC)
        except (ValueError, OverflowError):
            raise UnbookableEvent("A time of the event is out of range.") from None

    def _find_zone(self, name: str) -> tzinfo | None:
        """Return the IANA zone, Windows zone or VTIMEZONE of this name; None if it is unknown."""
        if len(name) > _MAX_ZONE_NAME_LENGTH:
            return None
        if zone := iana_zone_or_none(name):
            return zone
        calendar_zone = self._calendar_zones.get(name)
        if calendar_zone is None or not 1 <= len(calendar_zone.observances) <= _MAX_OBSERVANCES:
            return None
        return None if calendar_zone.has_unsupported_rule else VtimezoneInfo(name, calendar_zone)


def _parse_time(text: str, zone: tzinfo | None, zone_name: str) -> EventTime:
    """Parse a DATE or DATE-TIME. Raises UnbookableEvent."""
    match = _DATE_TIME.fullmatch(text.strip())
    if match is None:
        raise UnbookableEvent("A time of the event is not valid.")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        raise UnbookableEvent("A time of the event is out of range.")
    try:
        if match[4] is None:
            return date(year, month, day)
        local = datetime(year, month, day, hour, minute, min(second, _LAST_SECOND))  # noqa: DTZ001 - the zone follows
    except ValueError:
        raise UnbookableEvent("A time of the event is not valid.") from None
    if match[7]:
        return local.replace(tzinfo=UTC)
    if zone is None:
        name = "".join(character for character in zone_name if character.isprintable())[:100]
        raise UnbookableEvent(
            f"The time zone {name} is unknown." if name else "The event has no time zone."
        )
    return local.replace(tzinfo=zone)
