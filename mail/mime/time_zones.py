"""Local times of calendars: a zone by its usual name, or as its calendar describes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_USUAL = re.compile(r"(?:/(?:[^/]+/)*?)?([A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2})")
_LONGEST = 64
MOST = 50  # observances of a zone
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)(?:\d\d)?")
_DAY = re.compile(r"([+-]?[1-5])(MO|TU|WE|TH|FR|SA|SU)")
_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


@dataclass(frozen=True, slots=True)
class _Observance:
    """From when on, and in which years again, an offset is kept."""

    start: datetime
    before: timedelta
    offset: timedelta
    yearly: tuple[int, int, int] | None  # month, which week, which day of it
    until: datetime | None

    def onset(self, at: datetime) -> datetime | None:
        """When it last began before then, by the clock on the wall."""
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
    """A VTIMEZONE: its observances, as far as they can be read."""

    observances: list[_Observance] = field(default_factory=list)
    odd: bool = False  # one has a rule that we do not know

    def add(self, lines: Mapping[str, str]) -> None:
        """Take over an observance by its lines."""
        try:
            if len(self.observances) >= MOST:
                raise ValueError("no zone has so many")
            self.observances.append(_observance(lines))
        except (KeyError, ValueError):
            self.odd = True

    def instant(self, local: datetime) -> datetime | None:
        """The instant at which clocks there show this."""
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
    """The instant at which clocks of this zone show this; None where nobody can tell.

    A usual name (IANA) goes before what the calendar says of it: those are right more often.
    """
    try:
        usual = _USUAL.fullmatch(name) if len(name) <= _LONGEST else None
        if usual:
            return local.replace(tzinfo=ZoneInfo(usual[1])).astimezone(UTC)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # it is none of those: a folder, or a name of somebody's own
    except OverflowError:
        return None
    try:
        return zones[name].instant(local) if name in zones else None
    except (ValueError, OverflowError):  # at an end of the calendar
        return None


def _observance(lines: Mapping[str, str]) -> _Observance:
    start = datetime.strptime(lines["DTSTART"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - a wall's
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
    day = _DAY.fullmatch(rule.get("BYDAY", ""))
    known = {"FREQ", "BYMONTH", "BYDAY", "UNTIL", "INTERVAL", "WKST"}
    if rule["FREQ"] != "YEARLY" or not day or rule.keys() - known:
        raise ValueError("another rule than those of time zones")
    if rule.get("INTERVAL", "1") != "1":
        raise ValueError("not every year")
    month = int(rule.get("BYMONTH", start.month))
    datetime(start.year, month, 1)  # noqa: DTZ001 - is it a month?
    return month, int(day[1]), _DAYS.index(day[2])


def _offset(text: str) -> timedelta:
    found = _OFFSET.fullmatch(text.strip())
    if found is None:
        raise ValueError("no offset")
    sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return -offset if sign == "-" else offset


def _moment(year: int, yearly: Sequence[int], start: datetime) -> datetime:
    """When the day comes in a year: the second Sunday in March, the last in October."""
    month, week, day = yearly
    if week > 0:
        first = start.replace(year=year, month=month, day=1)
        away = (day - first.weekday()) % 7 + 7 * (week - 1)
        found = first + timedelta(days=away)
        return found if found.month == month else found - timedelta(days=7)
    following = start.replace(year=year + month // 12, month=month % 12 + 1, day=1)
    last = following - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - day) % 7 + 7 * (-week - 1))
