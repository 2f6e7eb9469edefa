"""Events of the calendar parts of a message (RFC 5545, RFC 5546)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from mail.mime.address_lists import ParsedAddress
from mail.mime.mime_tree import ParsedPart, walk_own_parts_with_parents
from mail.mime.time_zones import CalendarTimeZone, utc_from_local

CALENDAR_TYPES = ("text/calendar", "application/ics")
MAX_CALENDAR_PARTS = 10
MAX_CALENDAR_BYTES = 512 << 10  # of all calendar parts; the rest is not read
MAX_EVENTS = 100
MAX_TIME_ZONES = 50
MAX_COMPONENT_DEPTH = 10  # components within components
MAX_ATTENDEES = 1000
MAX_TEXT_LENGTH = 1000  # characters of a text
DEFAULT_METHOD = "PUBLISH"  # asks for no reply

_FOLD = re.compile(rb"(?:\r\n?|\n)[ \t]")
_LINE_END = re.compile(r"\r\n?|\n")
_LINE = re.compile(
    r"([A-Za-z0-9-]++)((?:;[A-Za-z0-9-]++=(?:\"[^\"]*+\"|[^\";:]*+)(?:,(?:\"[^\"]*+\"|[^\";:]*+))*+"
    r")*+):(.*)",
    re.DOTALL,
)
_PARAMETER = re.compile(r";([A-Za-z0-9-]++)=(?:\"([^\"]*+)\"|([^\";:]*+))")
_ESCAPE = re.compile(r"\\([nN,;\\])")
_DATE_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z?))?")
_DURATION = re.compile(r"([+-]?)P(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?"
                   r"(?:(\d{1,7})S)?)?")  # fmt: skip
_METHOD = re.compile(r"[A-Za-z-]{1,30}")
_LEAP_SECOND = 60
_EVENT_PATH = ["VCALENDAR", "VEVENT"]
_EVENT_PROPERTIES = frozenset(
    ("UID", "SUMMARY", "LOCATION", "DTSTART", "DTEND", "DURATION", "ORGANIZER", "ATTENDEE")
)


@dataclass(frozen=True, slots=True)
class ParsedCalendarEvent:
    """An event and the iTIP method that its sender asks for."""

    method: str
    uid: str
    summary: str | None
    starts_at: datetime | None  # None: missing, or in an unknown time zone
    ends_at: datetime | None
    all_day: bool  # the times are midnight UTC of their dates
    location: str | None
    organizer: ParsedAddress | None
    attendees: tuple[ParsedAddress, ...]


@dataclass(frozen=True, slots=True)
class ContentLine:
    """A content line (RFC 5545, section 3.1): name, parameters and unescaped value."""

    name: str
    parameters: dict[str, str]
    value: str


@dataclass(slots=True)
class _CalendarReader:
    """The calendar while it is read, and the position in its components."""

    method: str | None = None
    time_zones: dict[str, CalendarTimeZone] = field(default_factory=dict)
    events: list[list[ContentLine]] = field(default_factory=list)
    open_components: list[str] = field(default_factory=list)  # names, outermost first
    time_zone_id: str = ""  # of the VTIMEZONE that is being read
    observance_values: dict[str, str] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """True if a limit is exceeded and the rest is not read."""
        return len(self.open_components) > MAX_COMPONENT_DEPTH or len(self.events) > MAX_EVENTS

    def read_line(self, line: ContentLine) -> None:
        """Apply one content line."""
        value = line.value.strip()
        if line.name == "BEGIN":
            self.open_components.append(value.upper())
            self.observance_values = {}
            if self.open_components == _EVENT_PATH:
                self.events.append([])
        elif line.name == "END":
            self._end_component_and_store_observance()
        elif self.open_components == _EVENT_PATH:
            if line.name in _EVENT_PROPERTIES:
                self.events[-1].append(line)
        elif self.open_components == _EVENT_PATH[:1]:
            self.method = value if line.name == "METHOD" else self.method
        elif self.open_components[1:] == ["VTIMEZONE"]:
            self.time_zone_id = value if line.name == "TZID" else self.time_zone_id
        else:
            self.observance_values.setdefault(line.name, value)

    def _end_component_and_store_observance(self) -> None:
        """Close the innermost component and store a complete observance."""
        within_zone = self.open_components[1:2] == ["VTIMEZONE"]
        is_accepted = self.time_zone_id in self.time_zones or len(self.time_zones) < MAX_TIME_ZONES
        if within_zone and self.open_components[2:] in (["STANDARD"], ["DAYLIGHT"]) and is_accepted:
            self.time_zones.setdefault(
                self.time_zone_id, CalendarTimeZone()
            ).add_observance_or_mark_unsupported(self.observance_values)
        del self.open_components[-1:]


def calendar_parts(structure: ParsedPart) -> list[ParsedPart]:
    """Return the calendar parts of a message, at most 10."""
    calendar_parts = [
        part
        for part, _ in walk_own_parts_with_parents(structure)
        if part.content_type in CALENDAR_TYPES
    ]
    return calendar_parts[:MAX_CALENDAR_PARTS]


def unfold_lines(content: bytes) -> bytes:
    """Join the folded lines of a calendar. A fold can split a UTF-8 character."""
    return _FOLD.sub(b"", content)


def parse_events(text: str, fallback_method: str | None = None) -> list[ParsedCalendarEvent]:
    """Parse the events of an unfolded calendar, at most 100. Never raises.

    `fallback_method` is the method parameter of the MIME part; the METHOD of the calendar goes
    before it. Invalid lines, and events with neither UID nor start, are skipped.
    """
    calendar = _read_calendar(text)
    method_name = calendar.method or fallback_method or ""
    fallback_method = method_name.upper() if _METHOD.fullmatch(method_name) else DEFAULT_METHOD
    events = (
        _event_from_lines_or_none(fallback_method, lines, calendar.time_zones)
        for lines in calendar.events
    )
    return [event for event in events if event][:MAX_EVENTS]


def parse_time_zones(text: str) -> Mapping[str, CalendarTimeZone]:
    """Parse the time zones of an unfolded calendar by their names, at most 50. Never raises."""
    return _read_calendar(text).time_zones


def _read_calendar(text: str) -> _CalendarReader:
    calendar = _CalendarReader()
    for line in content_lines(text):
        calendar.read_line(line)
        if calendar.is_full:
            break
    return calendar


def content_lines(text: str) -> Iterator[ContentLine]:
    """Yield the valid content lines of a calendar."""
    for line in _LINE_END.split(text):
        match = _LINE.fullmatch(line)
        if match:
            name, parameters, value = match.groups()
            pairs = _PARAMETER.findall(parameters)
            property_parameters = {key.upper(): quoted or plain for key, quoted, plain in pairs}
            yield ContentLine(name.upper(), property_parameters, value)


def _event_from_lines_or_none(
    method: str, lines: list[ContentLine], time_zones: Mapping[str, CalendarTimeZone]
) -> ParsedCalendarEvent | None:
    """Build an event of its lines. Returns None if it has neither UID nor start."""
    first: dict[str, ContentLine] = {}
    for line in lines:
        first.setdefault(line.name, line)
    start, end = first.get("DTSTART"), first.get("DTEND")
    uid = text_value_or_none(first.get("UID"))
    if not uid and not start:
        return None
    people = [calendar_address_or_none(line) for line in lines if line.name == "ATTENDEE"][
        :MAX_ATTENDEES
    ]
    event = ParsedCalendarEvent(
        method,
        uid or "",
        text_value_or_none(first.get("SUMMARY")),
        _utc_time_of_line_or_none(start, time_zones),
        _utc_time_of_line_or_none(end, time_zones),
        start is not None and _is_date_without_time(start),
        text_value_or_none(first.get("LOCATION")),
        calendar_address_or_none(first["ORGANIZER"]) if "ORGANIZER" in first else None,
        tuple(person for person in people if person),
    )
    if end is None and event.starts_at and "DURATION" in first:
        return replace(
            event, ends_at=_add_duration_or_none(event.starts_at, first["DURATION"].value)
        )
    return event


def text_value_or_none(line: ContentLine | None) -> str | None:
    """Return the unescaped text of a line, cut to 1,000 characters; None if empty."""
    if line is None:
        return None
    value = line.value[: 2 * MAX_TEXT_LENGTH].replace("\0", "")
    plain = _ESCAPE.sub(lambda pair: "\n" if pair[1] in "nN" else pair[1], value)
    return plain.strip()[:MAX_TEXT_LENGTH] or None


def calendar_address_or_none(line: ContentLine) -> ParsedAddress | None:
    """Return the address and name (CN) of an organizer or attendee, None if empty."""
    scheme, colon, address = line.value.strip().partition(":")
    if not colon or scheme.lower() != "mailto":
        address = line.value.strip()
    name = line.parameters.get("CN", "").strip()[:MAX_TEXT_LENGTH] or None
    return ParsedAddress(name, address[:MAX_TEXT_LENGTH]) if address else None


def _is_date_without_time(line: ContentLine) -> bool:
    match = _DATE_TIME.fullmatch(line.value.strip())
    return match is not None and match[4] is None


def _utc_time_of_line_or_none(
    line: ContentLine | None, time_zones: Mapping[str, CalendarTimeZone]
) -> datetime | None:
    """Return the UTC time of a DATE or DATE-TIME line; None if invalid or zone unknown."""
    match = _DATE_TIME.fullmatch(line.value.strip()) if line else None
    if line is None or match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    try:
        local = datetime(year, month, day, hour, minute, min(second, _LEAP_SECOND - 1))  # noqa: DTZ001 - the zone follows below
    except ValueError:
        return None
    if match[7] or _is_date_without_time(line):
        return local.replace(tzinfo=UTC)
    return utc_from_local(local, line.parameters.get("TZID", ""), time_zones)


def _add_duration_or_none(start: datetime, duration: str) -> datetime | None:
    """Add an RFC 5545 duration. Returns None if it is invalid or negative."""
    match = _DURATION.fullmatch(duration.strip())
    if match is None or match[1] == "-":
        return None
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    long = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        return start + long
    except OverflowError:
        return None
