"""The tests `date` and `currentdate` (RFC 5260)."""

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

from mail.mime import date_of
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import INDEX, MATCH, Call, Given, Kind, Option, Signature
from mail.sieve.extensions.core_commands import FIELD_NAME

_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)", re.ASCII)
_OFFSET_AT_END = re.compile(r"[+-]\d{4}(?=\s*(?:\([^()]*\)\s*)*\Z)", re.ASCII)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_JULIAN = date(1858, 11, 17).toordinal()  # modified Julian day 0
_PARTS = (
    "year", "month", "day", "date", "julian", "hour", "minute", "second", "time", "iso8601",
    "std11", "zone", "weekday",
)  # fmt: skip


def part_of(at: datetime, part: str) -> str:
    """Return a part of a date as text (RFC 5260, section 4.2)."""
    zone = at.strftime("%z")[:5]
    clock = f"{at.hour:02}:{at.minute:02}:{at.second:02}"
    day = f"{at.year:04}-{at.month:02}-{at.day:02}"
    return {
        "year": f"{at.year:04}",
        "month": f"{at.month:02}",
        "day": f"{at.day:02}",
        "date": day,
        "julian": str(at.toordinal() - _JULIAN),
        "hour": f"{at.hour:02}",
        "minute": f"{at.minute:02}",
        "second": f"{at.second:02}",
        "time": clock,
        "iso8601": f"{day}T{clock}{zone[:3]}:{zone[3:]}",
        "std11": f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} "
        f"{clock} {zone}",
        "zone": zone,
        "weekday": str(at.isoweekday() % 7),
    }[part]


def _currentdate(run: Run, call: Call) -> bool:
    at = _placed(run, call, run.circumstances.now, None)
    return _compared(run, call, [at])


def _date(run: Run, call: Call) -> bool:
    fields = value_matching.indexed(call, run.headers(run.text(call, "name")))
    found: list[datetime] = []
    for field in fields[:1]:
        run.spend(call, comparators.cost(len(field.value)))
        text = field.value.rpartition(";")[2].strip()
        at = date_of(text)
        if at is not None:
            found.append(_placed(run, call, at, text))
    return _compared(run, call, found)


def _compared(run: Run, call: Call, found: list[datetime]) -> bool:
    """Compare the requested part of the dates with the keys. Raises SieveRunError."""
    part = run.text(call, "part").lower()
    if part not in _PARTS:
        raise run.failed(call, f'"{part[:40]}" is no part of a date')
    return value_matching.matched(
        run, call, [part_of(at, part) for at in found], run.texts(call, "keys")
    )


def _placed(run: Run, call: Call, at: datetime, text: str | None) -> datetime:
    """Convert a date to the requested time zone, by default that of the account."""
    zone: tzinfo = run.circumstances.zone
    if call.has("zone"):
        zone = _zone(run.text(call, "zone")) or zone
    elif call.has("originalzone") and text is not None:
        offset = _OFFSET_AT_END.search(text)
        zone = (_zone(offset[0]) if offset else None) or UTC
    try:
        return at.astimezone(zone)
    except OverflowError:  # the year is out of range
        return at


def _zone(text: str) -> tzinfo | None:
    found = _OFFSET.fullmatch(text)
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if offset >= timedelta(days=1):
        return None
    return timezone(-offset if sign == "-" else offset)


def _check(call: Call) -> str | None:
    zone, part, name = (call.string(one) for one in ("zone", "part", "name"))
    if call.has("zone") and isinstance(zone, str) and _zone(zone) is None:
        return f'"{zone[:40]}" is no zone such as "+0100"'
    if isinstance(part, str) and part.lower() not in _PARTS:
        return f'"{part[:40]}" is no part of a date: there are {", ".join(_PARTS)}'
    if call.has("name") and isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is no name of a field'
    return value_matching.check(call)


_PART = Given("part")
_KEYS = Given("keys", Kind.STRINGS)
_ZONE = Option("zone", Kind.STRING, group="place")
TESTS = (
    Signature(
        "date",
        _date,
        (Given("name"), _PART, _KEYS),
        (*MATCH, *INDEX, _ZONE, Option("originalzone", group="place")),
        extension="date",
        check=_check,
    ),
    Signature(
        "currentdate", _currentdate, (_PART, _KEYS), (*MATCH, _ZONE), extension="date", check=_check
    ),
)
