"""Events of the calendar parts of a message (RFC 5545, RFC 5546)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from mail.mime.address_lists import MailAddress
from mail.mime.mime_tree import Part, within
from mail.mime.time_zones import Zone, instant

KINDS = ("text/calendar", "application/ics")
MOST_PARTS = 10
MOST_BYTES = 512 << 10  # of all calendar parts; the rest is not read
MOST_EVENTS = 100
MOST_ZONES = 50
DEEPEST = 10  # components within components
MOST_ATTENDEES = 1000
LONGEST = 1000  # characters of a text
NO_METHOD = "PUBLISH"  # asks for no reply

_FOLD = re.compile(rb"(?:\r\n?|\n)[ \t]")
_LINE_END = re.compile(r"\r\n?|\n")
_LINE = re.compile(
    r"([A-Za-z0-9-]++)((?:;[A-Za-z0-9-]++=(?:\"[^\"]*+\"|[^\";:]*+)(?:,(?:\"[^\"]*+\"|[^\";:]*+))*+"
    r")*+):(.*)",
    re.DOTALL,
)
_PARAMETER = re.compile(r";([A-Za-z0-9-]++)=(?:\"([^\"]*+)\"|([^\";:]*+))")
_ESCAPE = re.compile(r"\\([nN,;\\])")
_WHEN = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?")
_SPAN = re.compile(r"([+-]?)P(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?"
                   r"(?:(\d{1,7})S)?)?")  # fmt: skip
_METHOD = re.compile(r"[A-Za-z-]{1,30}")
_LEAP_SECOND = 60
_INSIDE = ["VCALENDAR", "VEVENT"]
_SHOWN = frozenset(
    ("UID", "SUMMARY", "LOCATION", "DTSTART", "DTEND", "DURATION", "ORGANIZER", "ATTENDEE")
)


@dataclass(frozen=True, slots=True)
class CalendarEvent:
    """An event and the iTIP method that its sender asks for."""

    method: str
    uid: str
    summary: str | None
    starts_at: datetime | None  # None: missing, or in an unknown time zone
    ends_at: datetime | None
    all_day: bool  # the times are midnight UTC of their dates
    location: str | None
    organizer: MailAddress | None
    attendees: tuple[MailAddress, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    """A content line (RFC 5545, section 3.1): name, parameters and unescaped value."""

    name: str
    parameters: dict[str, str]
    value: str


@dataclass(slots=True)
class _Calendar:
    """The calendar while it is read, and the position in its components."""

    method: str | None = None
    zones: dict[str, Zone] = field(default_factory=dict)
    events: list[list[_Line]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)  # names, outermost first
    zone: str = ""  # of the VTIMEZONE that is being read
    observance: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """True if a limit is exceeded and the rest is not read."""
        return len(self.inside) > DEEPEST or len(self.events) > MOST_EVENTS

    def take(self, line: _Line) -> None:
        """Apply one content line."""
        value = line.value.strip()
        if line.name == "BEGIN":
            self.inside.append(value.upper())
            self.observance = {}
            if self.inside == _INSIDE:
                self.events.append([])
        elif line.name == "END":
            self._end()
        elif self.inside == _INSIDE:
            if line.name in _SHOWN:
                self.events[-1].append(line)
        elif self.inside == _INSIDE[:1]:
            self.method = value if line.name == "METHOD" else self.method
        elif self.inside[1:] == ["VTIMEZONE"]:
            self.zone = value if line.name == "TZID" else self.zone
        else:
            self.observance.setdefault(line.name, value)

    def _end(self) -> None:
        """Close the innermost component and store a complete observance."""
        within_zone = self.inside[1:2] == ["VTIMEZONE"]
        known = self.zone in self.zones or len(self.zones) < MOST_ZONES
        if within_zone and self.inside[2:] in (["STANDARD"], ["DAYLIGHT"]) and known:
            self.zones.setdefault(self.zone, Zone()).add(self.observance)
        del self.inside[-1:]


def calendars(structure: Part) -> list[Part]:
    """Return the calendar parts of a message, at most 10."""
    found = [part for part, _ in within(structure) if part.content_type in KINDS]
    return found[:MOST_PARTS]


def unfolded(content: bytes) -> bytes:
    """Join the folded lines of a calendar. A fold can split a UTF-8 character."""
    return _FOLD.sub(b"", content)


def events(text: str, method: str | None = None) -> list[CalendarEvent]:
    """Parse the events of an unfolded calendar, at most 100. Never raises.

    `part_method` is the method parameter of the MIME part; the METHOD of the calendar goes before
    it. Invalid lines, and events with neither UID nor start, are skipped.
    """
    calendar = _read(text)
    named = calendar.method or method or ""
    method = named.upper() if _METHOD.fullmatch(named) else NO_METHOD
    found = (_event(method, lines, calendar.zones) for lines in calendar.events)
    return [event for event in found if event][:MOST_EVENTS]


def _read(text: str) -> _Calendar:
    calendar = _Calendar()
    for line in _lines(text):
        calendar.take(line)
        if calendar.full:
            break
    return calendar


def _lines(text: str) -> Iterator[_Line]:
    """Yield the valid content lines of a calendar."""
    for written in _LINE_END.split(text):
        found = _LINE.fullmatch(written)
        if found:
            name, parameters, value = found.groups()
            pairs = _PARAMETER.findall(parameters)
            known = {key.upper(): quoted or plain for key, quoted, plain in pairs}
            yield _Line(name.upper(), known, value)


def _event(method: str, lines: list[_Line], zones: Mapping[str, Zone]) -> CalendarEvent | None:
    """Build an event of its lines. Returns None if it has neither UID nor start."""
    first: dict[str, _Line] = {}
    for line in lines:
        first.setdefault(line.name, line)
    start, end = first.get("DTSTART"), first.get("DTEND")
    uid = _text(first.get("UID"))
    if not uid and not start:
        return None
    people = [_person(line) for line in lines if line.name == "ATTENDEE"][:MOST_ATTENDEES]
    event = CalendarEvent(
        method,
        uid or "",
        _text(first.get("SUMMARY")),
        _when(start, zones),
        _when(end, zones),
        start is not None and _is_date(start),
        _text(first.get("LOCATION")),
        _person(first["ORGANIZER"]) if "ORGANIZER" in first else None,
        tuple(person for person in people if person),
    )
    if end is None and event.starts_at and "DURATION" in first:
        return replace(event, ends_at=_after(event.starts_at, first["DURATION"].value))
    return event


def _text(line: _Line | None) -> str | None:
    """Return the unescaped text of a line, cut to 1,000 characters; None if empty."""
    if line is None:
        return None
    value = line.value[: 2 * LONGEST].replace("\0", "")
    plain = _ESCAPE.sub(lambda found: "\n" if found[1] in "nN" else found[1], value)
    return plain.strip()[:LONGEST] or None


def _person(line: _Line) -> MailAddress | None:
    """Return the address and name (CN) of an organizer or attendee, None if empty."""
    scheme, colon, address = line.value.strip().partition(":")
    if not colon or scheme.lower() != "mailto":
        address = line.value.strip()
    name = line.parameters.get("CN", "").strip()[:LONGEST] or None
    return MailAddress(name, address[:LONGEST]) if address else None


def _is_date(line: _Line) -> bool:
    found = _WHEN.fullmatch(line.value.strip())
    return found is not None and found[4] is None


def _when(line: _Line | None, zones: Mapping[str, Zone]) -> datetime | None:
    """Return the UTC time of a DATE or DATE-TIME line; None if invalid or zone unknown."""
    found = _WHEN.fullmatch(line.value.strip()) if line else None
    if line is None or found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    try:
        local = datetime(year, month, day, hour, minute, min(second, _LEAP_SECOND - 1))  # noqa: DTZ001 - the zone follows below
    except ValueError:
        return None
    if found[7] or _is_date(line):
        return local.replace(tzinfo=UTC)
    return instant(local, line.parameters.get("TZID", ""), zones)


def _after(start: datetime, span: str) -> datetime | None:
    """Add an RFC 5545 duration. Returns None if it is invalid or negative."""
    found = _SPAN.fullmatch(span.strip())
    if found is None or found[1] == "-":
        return None
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
    long = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        return start + long
    except OverflowError:
        return None
