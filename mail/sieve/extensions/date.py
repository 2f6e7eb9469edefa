"""The tests `date` and `currentdate` (RFC 5260)."""

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

from mail.mime import parse_date_or_none
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    INDEX_OPTIONS,
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.extensions.core_commands import FIELD_NAME

_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)", re.ASCII)
_OFFSET_AT_END = re.compile(r"[+-]\d{4}(?=\s*(?:\([^()]*\)\s*)*\Z)", re.ASCII)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_JULIAN_DAY_ZERO = date(1858, 11, 17).toordinal()  # modified Julian day 0
_DATE_PARTS = (
    "year", "month", "day", "date", "julian", "hour", "minute", "second", "time", "iso8601",
    "std11", "zone", "weekday",
)  # fmt: skip


def date_part(at: datetime, part: str) -> str:
    """Return a part of a date as text (RFC 5260, section 4.2)."""
    zone = at.strftime("%z")[:5]
    clock = f"{at.hour:02}:{at.minute:02}:{at.second:02}"
    day = f"{at.year:04}-{at.month:02}-{at.day:02}"
    return {
        "year": f"{at.year:04}",
        "month": f"{at.month:02}",
        "day": f"{at.day:02}",
        "date": day,
        "julian": str(at.toordinal() - _JULIAN_DAY_ZERO),
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


def _evaluate_currentdate(run: ScriptRun, call: SieveCall) -> bool:
    at = _in_requested_zone(run, call, run.environment.now, None)
    return _any_date_matches(run, call, [at])


def _evaluate_date(run: ScriptRun, call: SieveCall) -> bool:
    fields = value_matching.values_at_index(
        call, run.fields_named(run.expanded_argument_or_empty(call, "name"))
    )
    dates: list[datetime] = []
    for field in fields[:1]:
        run.count_steps(call, comparators.comparison_steps(len(field.value)))
        text = field.value.rpartition(";")[2].strip()
        at = parse_date_or_none(text)
        if at is not None:
            dates.append(_in_requested_zone(run, call, at, text))
    return _any_date_matches(run, call, dates)


def _any_date_matches(run: ScriptRun, call: SieveCall, dates: list[datetime]) -> bool:
    """Compare the requested part of the dates with the keys. Raises SieveRunError."""
    part = run.expanded_argument_or_empty(call, "part").lower()
    if part not in _DATE_PARTS:
        raise run.error_at(call, f'"{part[:40]}" is not a date part.')
    return value_matching.any_value_matches(
        run, call, [date_part(at, part) for at in dates], run.strings_argument(call, "keys")
    )


def _in_requested_zone(
    run: ScriptRun, call: SieveCall, date_time: datetime, date_text: str | None
) -> datetime:
    """Convert a date to the requested time zone, by default that of the environment."""
    zone: tzinfo = run.environment.zone
    if call.has_argument("zone"):
        zone = _parse_zone_or_none(run.expanded_argument_or_empty(call, "zone")) or zone
    elif call.has_argument("originalzone") and date_text is not None:
        offset = _OFFSET_AT_END.search(date_text)
        zone = (_parse_zone_or_none(offset[0]) if offset else None) or UTC
    try:
        return date_time.astimezone(zone)
    except OverflowError:  # the year is out of range
        return date_time


def _parse_zone_or_none(text: str) -> tzinfo | None:
    match = _OFFSET.fullmatch(text)
    if match is None:
        return None
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if offset >= timedelta(days=1):
        return None
    return timezone(-offset if sign == "-" else offset)


def _date_test_problem(call: SieveCall) -> str | None:
    zone, part, name = (
        call.string_argument(argument_name) for argument_name in ("zone", "part", "name")
    )
    if call.has_argument("zone") and isinstance(zone, str) and _parse_zone_or_none(zone) is None:
        return f'"{zone[:40]}" is not a time zone such as "+0100".'
    if isinstance(part, str) and part.lower() not in _DATE_PARTS:
        return f'"{part[:40]}" is not a date part: use one of {", ".join(_DATE_PARTS)}.'
    if call.has_argument("name") and isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is not a header field name.'
    return value_matching.match_tags_problem(call)


_PART = PositionalArgument("part")
_KEYS = PositionalArgument("keys", ArgumentType.STRINGS)
_ZONE = TagOption("zone", ArgumentType.STRING, group="place")
TESTS = (
    CallSignature(
        "date",
        _evaluate_date,
        (PositionalArgument("name"), _PART, _KEYS),
        (*MATCH_OPTIONS, *INDEX_OPTIONS, _ZONE, TagOption("originalzone", group="place")),
        extension="date",
        find_problem=_date_test_problem,
    ),
    CallSignature(
        "currentdate",
        _evaluate_currentdate,
        (_PART, _KEYS),
        (*MATCH_OPTIONS, _ZONE),
        extension="date",
        find_problem=_date_test_problem,
    ),
)
