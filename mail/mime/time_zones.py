"""Local times of calendars, by an IANA zone or by the VTIMEZONE of the calendar."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_USUAL = re.compile(r"(?:/(?:[^/]+/)*?)?([A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2})")
_LONGEST = 64
MOST = 50  # of one time zone
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)(?:\d\d)?")
_DAY = re.compile(r"([+-]?[1-5])(MO|TU|WE|TH|FR|SA|SU)")
_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


@dataclass(frozen=True, slots=True)
class _Observance:
    """A STANDARD or DAYLIGHT component: an offset and when it begins."""

    start: datetime
    before: timedelta
    offset: timedelta
    yearly: tuple[int, int, int] | None  # month, week (negative: from its end), weekday
    until: datetime | None

    def onset(self, at: datetime) -> datetime | None:
        """Return the last onset at or before a local time, None if there is none."""
        if at < self.start:
            return None
        if self.yearly is None:
            return self.start
        years = (year for year in (at.year, at.year - 1) if year >= self.start.year)
        onsets = (_moment(year, self.yearly, self.start) for year in years)
        past = [one for one in onsets if one <= at and (not self.until or one <= self.until)]
        return max(past, default=self.start)


@dataclass(slots=True)
class Zone:
    """A VTIMEZONE (RFC 5545, section 3.6.5) with the observances that can be read."""

    observances: list[_Observance] = field(default_factory=list)
    odd: bool = False

    def add(self, lines: Mapping[str, str]) -> None:
        """Add an observance by its properties. An unsupported one makes the zone unusable."""
        try:
            if len(self.observances) >= MOST:
                raise ValueError("no zone has so many")
            self.observances.append(_observance(lines))
        except (KeyError, ValueError):
            self.odd = True

    def instant(self, local: datetime) -> datetime | None:
        """Convert a local time of this zone to UTC, None if the zone is unusable."""
        if self.odd or not self.observances:
            return None
        begun = [(one.onset(local), one) for one in self.observances]
        past = [(onset, one) for onset, one in begun if onset]
        if past:
            offset = max(past, key=lambda pair: pair[0])[1].offset
        else:
            offset = min(self.observances, key=lambda one: one.start).before
        return (local - offset).replace(tzinfo=UTC)


def instant(local: datetime, name: str, zones: Mapping[str, Zone]) -> datetime | None:
    """Convert a local time to UTC; None if the zone is unknown or the time out of range.

    An IANA name goes before the VTIMEZONE of the calendar, which is wrong more often.
    """
    try:
        usual = _USUAL.fullmatch(name) if len(name) <= _LONGEST else None
        if usual:
            return local.replace(tzinfo=ZoneInfo(usual[1])).astimezone(UTC)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # not an IANA zone, for example a custom name
    except OverflowError:
        return None
    try:
        return zones[name].instant(local) if name in zones else None
    except (ValueError, OverflowError):  # the year is out of range
        return None


def _observance(lines: Mapping[str, str]) -> _Observance:
    """Raises KeyError or ValueError if a property is missing or unsupported."""
    start = datetime.strptime(lines["DTSTART"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - a local time
    rule = dict(part.partition("=")[::2] for part in lines.get("RRULE", "").upper().split(";"))
    until = None
    if "UNTIL" in rule:
        until = datetime.strptime(rule["UNTIL"][:8], "%Y%m%d") + timedelta(days=1)  # noqa: DTZ007
    return _Observance(
        start,
        _offset(lines["TZOFFSETFROM"]),
        _offset(lines["TZOFFSETTO"]),
        _yearly(rule, start) if rule.get("FREQ") else None,
        until,
    )


def _yearly(rule: Mapping[str, str], start: datetime) -> tuple[int, int, int]:
    """Return month, week and weekday of a yearly rule.

    Raises ValueError if the rule is not one that time zones use.
    """
    day = _DAY.fullmatch(rule.get("BYDAY", ""))
    known = {"FREQ", "BYMONTH", "BYDAY", "UNTIL", "INTERVAL", "WKST"}
    if rule["FREQ"] != "YEARLY" or not day or rule.keys() - known:
        raise ValueError("another rule than those of time zones")
    if rule.get("INTERVAL", "1") != "1":
        raise ValueError("not every year")
    month = int(rule.get("BYMONTH", start.month))
    datetime(start.year, month, 1)  # noqa: DTZ001 - checks the month
    return month, int(day[1]), _DAYS.index(day[2])


def _offset(text: str) -> timedelta:
    found = _OFFSET.fullmatch(text.strip())
    if found is None:
        raise ValueError("no offset")
    sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return -offset if sign == "-" else offset


def _moment(year: int, yearly: Sequence[int], start: datetime) -> datetime:
    """Return the onset in a year, such as the second Sunday in March."""
    month, week, day = yearly
    if week > 0:
        first = start.replace(year=year, month=month, day=1)
        away = (day - first.weekday()) % 7 + 7 * (week - 1)
        found = first + timedelta(days=away)
        return found if found.month == month else found - timedelta(days=7)
    following = start.replace(year=year + month // 12, month=month % 12 + 1, day=1)
    last = following - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - day) % 7 + 7 * (-week - 1))
