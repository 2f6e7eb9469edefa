"""Parsing of invitations and other iTIP messages to resources (RFC 5545, RFC 5546)."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mail.addresses.address_syntax import NormalizedAddress, normalized_address, normalized_domain
from mail.envelope.resource_refusal import ONLY_INVITATIONS_TEXT, ResourceMailRefused
from mail.mime.address_lists import ParsedAddress
from mail.mime.calendar_events import (
    MAX_CALENDAR_BYTES,
    MAX_COMPONENT_DEPTH,
    MAX_EVENTS,
    ContentLine,
    calendar_address_or_none,
    content_lines,
    parse_time_zones,
    text_value_or_none,
    unfold_lines,
)
from mail.mime.charsets import decode_text
from mail.resources.event_times import EventTime, EventTimeReader
from mail.resources.unbookable_event import UnbookableEvent

METHODS = ("REQUEST", "CANCEL", "COUNTER", "REFRESH")  # that a resource handles
MAX_UID_LENGTH = 1000  # characters
MAX_SEQUENCE = (1 << 31) - 1
_CALENDAR_PATH = ["VCALENDAR"]
_EVENT_PATH = ["VCALENDAR", "VEVENT"]
_SINGLE_PROPERTIES = frozenset(
    ("UID", "SUMMARY", "DTSTART", "DTEND", "DURATION", "DTSTAMP", "SEQUENCE", "STATUS")
) | frozenset(("RECURRENCE-ID", "ORGANIZER"))
_REPEATED_PROPERTIES = frozenset(("RRULE", "EXRULE", "RDATE", "EXDATE"))
_SEQUENCE = re.compile(r"\d{1,10}")


@dataclass(slots=True)
class InvitedComponent:
    """A VEVENT of an invitation: a whole event, or one changed occurrence of it."""

    lines: dict[str, ContentLine] = field(default_factory=dict)  # properties that occur once
    repeated_lines: list[ContentLine] = field(default_factory=list)
    attendees: set[NormalizedAddress] = field(default_factory=set)

    @property
    def sequence(self) -> int:
        """The SEQUENCE, 0 if it is missing or invalid."""
        line = self.lines.get("SEQUENCE")
        value = line.value.strip() if line else ""
        return min(int(value), MAX_SEQUENCE) if _SEQUENCE.fullmatch(value) else 0

    @property
    def is_occurrence(self) -> bool:
        """True if it is one occurrence of a series."""
        return "RECURRENCE-ID" in self.lines

    @property
    def is_for_later_ones(self) -> bool:
        """True if it is about one occurrence and all later ones (RANGE=THISANDFUTURE)."""
        line = self.lines.get("RECURRENCE-ID")
        return line is not None and line.parameters.get("RANGE", "").upper() == "THISANDFUTURE"

    @property
    def is_cancelled(self) -> bool:
        """True if its STATUS is CANCELLED."""
        line = self.lines.get("STATUS")
        return line is not None and line.value.strip().upper() == "CANCELLED"


@dataclass(frozen=True, slots=True)
class _ParsedCalendar:
    """The used members of a calendar object (RFC 5545, section 3.4)."""

    method: str  # in capitals; empty if it is missing
    time_zone_name: str  # X-WR-TIMEZONE; empty if it is missing
    components: list[InvitedComponent]


@dataclass(frozen=True, slots=True)
class Invitation:
    """An iTIP message: its method and the components of one event."""

    method: str
    uid: str
    organizer: ParsedAddress
    components: Sequence[InvitedComponent]
    times: EventTimeReader

    @property
    def main_component(self) -> InvitedComponent:
        """The component of the whole event; without one, the first occurrence."""
        return next(
            (component for component in self.components if not component.is_occurrence),
            self.components[0],
        )

    @property
    def is_for_series(self) -> bool:
        """True if it is about the whole event, False if it is about single occurrences."""
        return not self.main_component.is_occurrence

    @property
    def summary(self) -> str | None:
        """The title of the event."""
        return text_value_or_none(self.main_component.lines.get("SUMMARY"))

    @property
    def organizer_key(self) -> str:
        """The address of the organizer in the form of `address_key`."""
        return address_key(self.organizer.address)

    def stamped_at(self, component: InvitedComponent, default: datetime) -> datetime:
        """Return the DTSTAMP of a component in UTC, the default if it is missing or invalid."""
        line = component.lines.get("DTSTAMP")
        try:
            stamp = self.times.first_time_of_line(line) if line else default
            return min(self.times.utc_from_event_time(stamp), default)
        except UnbookableEvent:
            return default

    def recurrence_id_time_or_none(self, component: InvitedComponent) -> EventTime | None:
        """Return the RECURRENCE-ID of a component, None if it has none. Raises UnbookableEvent."""
        line = component.lines.get("RECURRENCE-ID")
        return self.times.first_time_of_line(line) if line else None


def address_key(address: str) -> str:
    """Return an address in lower case with the domain in Unicode. Dots and labels count.

    Not by `casefold`: "straße.example" and "strasse.example" are domains of different owners.
    """
    local, _, domain = unicodedata.normalize("NFC", address.strip().lower()).rpartition("@")
    return f"{local}@{normalized_domain(domain)}"


def parse_invitation(content: bytes, charset: str | None, part_method: str | None) -> Invitation:
    """Parse the calendar part of a message to a resource.

    `part_method` is the method parameter of the MIME part. Raises ResourceMailRefused if it is no
    iTIP message about one event, or is larger than 512 KiB.
    """
    if len(content) > MAX_CALENDAR_BYTES:
        raise ResourceMailRefused(
            f"The calendar of an invitation has at most {MAX_CALENDAR_BYTES >> 10} KiB."
        )
    text = decode_text(unfold_lines(content), charset or "utf-8").removeprefix("\ufeff")
    calendar = _parse_calendar(text)
    method, components = _require_agreed_method(calendar.method, part_method), calendar.components
    if not components:
        raise ResourceMailRefused("The invitation contains no event.")
    times = EventTimeReader(parse_time_zones(text), calendar.time_zone_name)
    uid = _require_common_uid(components)
    organizer = _require_common_organizer(components)
    return Invitation(method, uid, organizer, components, times)


def require_invited(invitation: Invitation, addresses: Collection[NormalizedAddress]) -> None:
    """Raise ResourceMailRefused if none of these addresses is an attendee of the event."""
    attendees = set().union(*(component.attendees for component in invitation.components))
    if attendees.isdisjoint(addresses):
        raise ResourceMailRefused("The resource is not an attendee of the event.")


def _parse_calendar(text: str) -> _ParsedCalendar:
    """Parse the calendar of an invitation. Raises ResourceMailRefused beyond a limit."""
    calendar_values: dict[str, str] = {}
    components: list[InvitedComponent] = []
    path: list[str] = []
    for line in content_lines(text):
        value = line.value.strip()
        if line.name == "BEGIN":
            path.append(value.upper())
            if path == _EVENT_PATH:
                components.append(InvitedComponent())
        elif line.name == "END":
            del path[-1:]
        elif path == _CALENDAR_PATH:
            _require_same_value(calendar_values.setdefault(line.name, value), line)
        elif path == _EVENT_PATH:
            _add_property(components[-1], line)
        if len(path) > MAX_COMPONENT_DEPTH or len(components) > MAX_EVENTS:
            raise ResourceMailRefused("The invitation contains too many events or components.")
    return _ParsedCalendar(
        calendar_values.get("METHOD", "").upper(),
        calendar_values.get("X-WR-TIMEZONE", ""),
        components,
    )


def _require_same_value(first_value: str, line: ContentLine) -> None:
    """Raise ResourceMailRefused for a second METHOD that contradicts the first one."""
    if line.name == "METHOD" and first_value.upper() != line.value.strip().upper():
        raise ResourceMailRefused("The invitation has two methods.")


def _add_property(component: InvitedComponent, line: ContentLine) -> None:
    """Add a property to a component, if it is used."""
    if line.name in _SINGLE_PROPERTIES:
        component.lines.setdefault(line.name, line)
    elif line.name in _REPEATED_PROPERTIES:
        component.repeated_lines.append(line)
    elif line.name == "ATTENDEE" and (attendee := calendar_address_or_none(line)):
        component.attendees.add(normalized_address(attendee.address))


def _require_agreed_method(calendar_method: str, part_method: str | None) -> str:
    """Return the method of the calendar. Raises ResourceMailRefused if the MIME part differs."""
    method = calendar_method or (part_method or "").upper()
    if part_method and part_method.upper() != method:
        raise ResourceMailRefused(
            "The method of the invitation differs between the MIME part and the calendar."
        )
    if method not in METHODS:
        raise ResourceMailRefused(ONLY_INVITATIONS_TEXT)
    return method


def _require_common_uid(components: Sequence[InvitedComponent]) -> str:
    """Return the UID of all components. Raises ResourceMailRefused if they have several."""
    lines = [component.lines.get("UID") for component in components]
    uids = {text_value_or_none(line) or "" for line in lines}
    if len(uids) != 1 or uids == {""}:
        raise ResourceMailRefused("The invitation must be for one event with a UID.")
    if any(line and len(line.value) > MAX_UID_LENGTH for line in lines):
        raise ResourceMailRefused(f"The UID of an event has at most {MAX_UID_LENGTH} characters.")
    return uids.pop()


def _require_common_organizer(components: Sequence[InvitedComponent]) -> ParsedAddress:
    """Return the organizer of all components. Raises ResourceMailRefused if they have several."""
    lines = [component.lines.get("ORGANIZER") for component in components]
    organizers = [calendar_address_or_none(line) if line else None for line in lines]
    keys = {address_key(person.address) if person else None for person in organizers}
    if len(keys) != 1 or organizers[0] is None:
        raise ResourceMailRefused("The invitation must have one organizer.")
    return organizers[0]
