"""Local times of calendars, by an IANA zone or by the VTIMEZONE of the calendar."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_IANA_NAME = re.compile(r"(?:/(?:[^/]+/)*?)?([A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2})")
_MAX_ZONE_NAME_LENGTH = 64
MAX_OBSERVANCES = 50  # of one time zone
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)(?:\d\d)?")
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
            one for one in onsets if one <= local_time and (not self.until or one <= self.until)
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
                raise ValueError("no zone has so many")
            self.observances.append(_parse_observance(properties))
        except (KeyError, ValueError):
            self.has_unsupported_rule = True

    def utc_from_local(self, local_time: datetime) -> datetime | None:
        """Convert a local time of this zone to UTC, None if the zone is unusable."""
        if self.has_unsupported_rule or not self.observances:
            return None
        begun = [(one.last_onset(local_time), one) for one in self.observances]
        past = [(onset, one) for onset, one in begun if onset]
        if past:
            offset = max(past, key=lambda pair: pair[0])[1].offset
        else:
            offset = min(self.observances, key=lambda one: one.start).offset_before
        return (local_time - offset).replace(tzinfo=UTC)


def utc_from_local(
    local_time: datetime, zone_name: str, calendar_zones: Mapping[str, CalendarTimeZone]
) -> datetime | None:
    """Convert a local time to UTC; None if the zone is unknown or the time out of range.

    An IANA name goes before the VTIMEZONE of the calendar, which is wrong more often.
    """
    try:
        usual = _IANA_NAME.fullmatch(zone_name) if len(zone_name) <= _MAX_ZONE_NAME_LENGTH else None
        if usual:
            return local_time.replace(tzinfo=ZoneInfo(usual[1])).astimezone(UTC)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # not an IANA zone, for example a custom name
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
    """Raises KeyError or ValueError if a property is missing or unsupported."""
    start = datetime.strptime(properties["DTSTART"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - a local time
    rule = dict(part.partition("=")[::2] for part in properties.get("RRULE", "").upper().split(";"))
    until = None
    if "UNTIL" in rule:
        until = datetime.strptime(rule["UNTIL"][:8], "%Y%m%d") + timedelta(days=1)  # noqa: DTZ007
    return _Observance(
        start,
        _parse_offset(properties["TZOFFSETFROM"]),
        _parse_offset(properties["TZOFFSETTO"]),
        _parse_yearly_rule(rule, start) if rule.get("FREQ") else None,
        until,
    )


def _parse_yearly_rule(rule: Mapping[str, str], start: datetime) -> _YearlyRule:
    """Parse a yearly rule. Raises ValueError if it is not one that time zones use."""
    day = _WEEK_AND_DAY.fullmatch(rule.get("BYDAY", ""))
    known = {"FREQ", "BYMONTH", "BYDAY", "UNTIL", "INTERVAL", "WKST"}
    if rule["FREQ"] != "YEARLY" or not day or rule.keys() - known:
        raise ValueError("another rule than those of time zones")
    if rule.get("INTERVAL", "1") != "1":
        raise ValueError("not every year")
    month = int(rule.get("BYMONTH", start.month))
    datetime(start.year, month, 1)  # noqa: DTZ001 - checks the month
    return _YearlyRule(month, int(day[1]), _DAYS.index(day[2]))


def _parse_offset(text: str) -> timedelta:
    found = _OFFSET.fullmatch(text.strip())
    if found is None:
        raise ValueError("no offset")
    sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return -offset if sign == "-" else offset


def _onset_in_year(year: int, yearly_rule: _YearlyRule, start: datetime) -> datetime:
    """Return the onset in a year, with the time of day of `start`."""
    month, week, day = yearly_rule.month, yearly_rule.week, yearly_rule.weekday
    if week > 0:
        first = start.replace(year=year, month=month, day=1)
        away = (day - first.weekday()) % 7 + 7 * (week - 1)
        found = first + timedelta(days=away)
        return found if found.month == month else found - timedelta(days=7)
    following = start.replace(year=year + month // 12, month=month % 12 + 1, day=1)
    last = following - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - day) % 7 + 7 * (-week - 1))
