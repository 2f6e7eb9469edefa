"""Local times of calendars, by an IANA zone or by the VTIMEZONE of the calendar."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_IANA_NAME = re.compile(r"(?:/(?:[^/]+/)*?)?([A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2})")
_MAX_ZONE_NAME_LENGTH = 64
MAX_OBSERVANCES = 50  # of one time zone
_OFFSET = re.compile(r"([+-])([01]\d|2[0-3])([0-5]\d)(?:\d\d)?")  # less than a day
_WEEK_AND_DAY = re.compile(r"([+-]?[1-5])(MO|TU|WE|TH|FR|SA|SU)")
_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


@dataclass(frozen=True, slots=True)
class _YearlyRule:
    """A yearly RRULE, such as the second Sunday in March."""

    month: int
    week: int  # negative: counted from the end of the month
    weekday: int  # 0: Monday


@dataclass(frozen=True, slots=True)
class _Observance:
    """A STANDARD or DAYLIGHT component: an offset and when it begins."""

    start: datetime
    offset_before: timedelta
    offset: timedelta
    yearly_rule: _YearlyRule | None
    until: datetime | None

    def last_onset(self, local_time: datetime) -> datetime | None:
        """Return the last onset at or before a local time, None if there is none."""
        if local_time < self.start:
            return None
        if self.yearly_rule is None:
            return self.start
        years = (year for year in (local_time.year, local_time.year - 1) if year >= self.start.year)
        onsets = (_onset_in_year(year, self.yearly_rule, self.start) for year in years)
        past = [
            onset
            for onset in onsets
            if onset <= local_time and (not self.until or onset <= self.until)
        ]
        return max(past, default=self.start)


@dataclass(slots=True)
class CalendarTimeZone:
    """A VTIMEZONE (RFC 5545, section 3.6.5) with the observances that can be read."""

    observances: list[_Observance] = field(default_factory=list)
    has_unsupported_rule: bool = False

    def add_observance_or_mark_unsupported(self, properties: Mapping[str, str]) -> None:
        """Add an observance by its properties. An unsupported one makes the zone unusable."""
        try:
            if len(self.observances) >= MAX_OBSERVANCES:
                raise ValueError("too many observances of a time zone")
            self.observances.append(_parse_observance(properties))
        except (KeyError, ValueError, OverflowError):
            self.has_unsupported_rule = True

    def utc_from_local(self, local_time: datetime) -> datetime | None:
        """Convert a local time of this zone to UTC, None if the zone is unusable."""
        if self.has_unsupported_rule or not self.observances:
            return None
        begun = [(observance.last_onset(local_time), observance) for observance in self.observances]
        past = [(onset, observance) for onset, observance in begun if onset]
        if past:
            offset = max(past, key=lambda pair: pair[0])[1].offset
        else:
            offset = min(self.observances, key=lambda item: item.start).offset_before
        return (local_time - offset).replace(tzinfo=UTC)


def iana_zone_or_none(zone_name: str) -> ZoneInfo | None:
    """Return the IANA zone of this name, with or without a prefix; None if there is none.

    The names of Windows, such as `W. Europe Standard Time`, are names too.
    """
    zone_name = _iana_names_by_windows_name().get(zone_name, zone_name)
    try:
        match = _IANA_NAME.fullmatch(zone_name) if len(zone_name) <= _MAX_ZONE_NAME_LENGTH else None
        return ZoneInfo(match[1]) if match else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None  # for example a custom name


@cache
def _iana_names_by_windows_name() -> Mapping[str, str]:
    """Return the IANA names of the time zones of Windows, as Unicode CLDR maps them."""
    from icalendar.timezone.windows_to_olson import WINDOWS_TO_OLSON  # noqa: PLC0415 - few need it, and all wait for the start

    return WINDOWS_TO_OLSON


def utc_from_local(
    local_time: datetime, zone_name: str, calendar_zones: Mapping[str, CalendarTimeZone]
) -> datetime | None:
    """Convert a local time to UTC; None if the zone is unknown or the time out of range.

    An IANA name or a name of Windows goes before the VTIMEZONE of the calendar, which is wrong
    more often.
    """
    if zone := iana_zone_or_none(zone_name):
        try:
            return local_time.replace(tzinfo=zone).astimezone(UTC)
        except OverflowError:
            return None
    try:
        return (
            calendar_zones[zone_name].utc_from_local(local_time)
            if zone_name in calendar_zones
            else None
        )
    except (ValueError, OverflowError):  # the year is out of range
        return None


def _parse_observance(properties: Mapping[str, str]) -> _Observance:
    """Raises KeyError, ValueError or OverflowError if a property is missing or unsupported."""
    start = datetime.strptime(properties["DTSTART"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - a local time
    rule = dict(part.partition("=")[::2] for part in properties.get("RRULE", "").upper().split(";"))
    until = None
    if "UNTIL" in rule:
        until = datetime.strptime(rule["UNTIL"][:8], "%Y%m%d") + timedelta(days=1)  # noqa: DTZ007
    return _Observance(
        start,
        _parse_icalendar_offset(properties["TZOFFSETFROM"]),
        _parse_icalendar_offset(properties["TZOFFSETTO"]),
        _parse_yearly_rule(rule, start) if rule.get("FREQ") else None,
        until,
    )


def _parse_yearly_rule(rule: Mapping[str, str], start: datetime) -> _YearlyRule:
    """Parse a yearly rule. Raises ValueError if it is not one that time zones use."""
    day = _WEEK_AND_DAY.fullmatch(rule.get("BYDAY", ""))
    supported_parts = {"FREQ", "BYMONTH", "BYDAY", "UNTIL", "INTERVAL", "WKST"}
    if rule["FREQ"] != "YEARLY" or not day or rule.keys() - supported_parts:
        raise ValueError("unsupported recurrence rule of a time zone")
    if rule.get("INTERVAL", "1") != "1":
        raise ValueError("rules with an interval are not supported")
    month = int(rule.get("BYMONTH", start.month))
    datetime(start.year, month, 1)  # noqa: DTZ001 - checks the month
    return _YearlyRule(month, int(day[1]), _DAYS.index(day[2]))


def _parse_icalendar_offset(text: str) -> timedelta:
    match = _OFFSET.fullmatch(text.strip())
    if match is None:
        raise ValueError("no offset")
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return -offset if sign == "-" else offset


def _onset_in_year(year: int, yearly_rule: _YearlyRule, start: datetime) -> datetime:
    """Return the onset in a year, with the time of day of `start`."""
    month, week, day = yearly_rule.month, yearly_rule.week, yearly_rule.weekday
    if week > 0:
        first = start.replace(year=year, month=month, day=1)
        days_ahead = (day - first.weekday()) % 7 + 7 * (week - 1)
        onset = first + timedelta(days=days_ahead)
        return onset if onset.month == month else onset - timedelta(days=7)
    following = start.replace(year=year + month // 12, month=month % 12 + 1, day=1)
    last = following - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - day) % 7 + 7 * (-week - 1))
