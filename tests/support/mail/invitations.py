"""Invitations to resources: calendars, messages with them, and their delivery."""

import base64
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from typing import Any

from mail.delivery import pipeline
from mail.recipients import recipient_routes
from models.runtime.environment import CommittedOptions, Environment
from tests.conftest import GraphQLClient

ORGANIZER = "carol@far.example"
FRONT_SERVER = "front"  # authserv-id of a trusted server in front of LMTP
# The fields that the server in front adds to mail that DMARC authenticates.
TRUSTED_FIELDS = (
    "Authentication-Results: front; spf=pass smtp.mailfrom={domain};\r\n"
    " dmarc=pass header.from={domain}\r\n"
    "Received: from {domain} by front; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
)
CUSTOM_TIME_ZONE = """BEGIN:VTIMEZONE
TZID:Custom Time
BEGIN:STANDARD
DTSTART:16010101T030000
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
RRULE:FREQ=YEARLY;INTERVAL=1;BYDAY=-1SU;BYMONTH=10
END:STANDARD
BEGIN:DAYLIGHT
DTSTART:16010101T020000
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
RRULE:FREQ=YEARLY;INTERVAL=1;BYDAY=-1SU;BYMONTH=3
END:DAYLIGHT
END:VTIMEZONE
"""


@dataclass(frozen=True)
class CalendarEvent:
    """A VEVENT of an invitation. `times` are its lines from DTSTART on."""

    room: str
    times: str = "DTSTART:20300110T100000Z\nDTEND:20300110T110000Z"
    uid: str = "meeting-1"
    organizer: str = ORGANIZER
    sequence: int = 0
    stamp: str = "20291231T000000Z"
    summary: str = "Planning"
    others: str = ""  # further lines

    def text(self) -> str:
        """The lines of the component."""
        return (
            f"BEGIN:VEVENT\nUID:{self.uid}\nDTSTAMP:{self.stamp}\nSEQUENCE:{self.sequence}\n"
            f"ORGANIZER;CN=Carol:mailto:{self.organizer}\n"
            f"ATTENDEE;RSVP=TRUE;PARTSTAT=NEEDS-ACTION:mailto:{self.room}\n"
            f"SUMMARY:{self.summary}\n{self.times}\n{self.others}END:VEVENT\n"
        )


@dataclass(frozen=True)
class Invitation:
    """An iTIP message with its events, in the form that Internet mail has it."""

    events: tuple[CalendarEvent, ...]
    method: str = "REQUEST"
    author: str = ORGANIZER
    headers: dict[str, str] = field(default_factory=dict)
    calendar_lines: str = CUSTOM_TIME_ZONE
    part_method: str | None = None  # in the MIME part; None: as `method`

    @property
    def calendar(self) -> bytes:
        """The calendar, with CRLF."""
        components = "".join(event.text() for event in self.events)
        text = (
            f"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//Test//EN\nMETHOD:{self.method}\n"
            f"{self.calendar_lines}{components}END:VCALENDAR\n"
        )
        return text.replace("\n", "\r\n").encode()

    def to_bytes(self) -> bytes:
        """The message."""
        return calendar_message(
            self.calendar,
            self.author,
            self.events[0].room,
            method=self.part_method or self.method,
            headers=self.headers,
        )


def calendar_message(
    calendar: bytes,
    author: str,
    to: str,
    *,
    method: str = "REQUEST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """A message with a text and a calendar as alternatives."""
    fields = {
        "From": author,
        "To": to,
        "Subject": "Invitation",
        "Date": "Tue, 01 Jan 2030 10:00:00 +0000",
        "Message-ID": "<invitation@far.example>",
        "MIME-Version": "1.0",
        "Content-Type": 'multipart/alternative; boundary="b"',
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    parameter = f"; method={method}" if method else ""
    encoded = base64.encodebytes(calendar).decode().replace("\n", "\r\n")
    return (
        f"{head}\r\n--b\r\nContent-Type: text/plain\r\n\r\nPlease come.\r\n--b\r\n"
        f"Content-Type: text/calendar; charset=utf-8{parameter}\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n{encoded}\r\n--b--\r\n"
    ).encode()


def meeting(room: str, times: str = CalendarEvent("").times, **fields: Any) -> Invitation:
    """A REQUEST for one event. Other fields are those of the event."""
    return Invitation((CalendarEvent(room, times, **fields),))


def hours(day: int, start: int = 10, end: int = 11) -> str:
    """The times of an event on a day of January 2030, in UTC."""
    return f"DTSTART:203001{day:02}T{start:02}0000Z\nDTEND:203001{day:02}T{end:02}0000Z"


def cancellation(invitation: Invitation, **event_fields: Any) -> Invitation:
    """The CANCEL of an invitation, with a higher SEQUENCE."""
    events = tuple(
        replace(event, sequence=event.sequence + 1, **event_fields) for event in invitation.events
    )
    return replace(invitation, events=events, method="CANCEL")


def trust_front_server(environment: Environment) -> None:
    """Let the server trust authentication results of the server in front of LMTP."""
    options = replace(environment.options, authserv_ids=(FRONT_SERVER,))
    environment.use_options_unless_outdated(
        CommittedOptions(options, environment.options_position + 1)
    )


def authenticated(raw: bytes, domain: str = "far.example") -> bytes:
    """The message with the results of the server in front, which DMARC authenticates."""
    return TRUSTED_FIELDS.format(domain=domain).encode() + raw


async def deliver_to_resource(
    environment: Environment, raw: bytes, recipient: str, sender: str = ORGANIZER
) -> object:
    """Deliver a message as the LMTP listener does. Returns the result of the recipient."""
    incoming = await pipeline.read_and_verify_incoming(environment, raw, sender)
    accepted = await recipient_routes.accept_recipient(environment, recipient, sender)
    (outcome,) = await pipeline.deliver_to_accepted_recipients(environment, incoming, [accepted])
    return outcome


async def deliver_invitation(
    environment: Environment, invitation: Invitation, recipient: str | None = None
) -> str:
    """Deliver an authenticated invitation. Returns its result, or raises the refusal."""
    domain = invitation.author.rpartition("@")[2]
    outcome = await deliver_to_resource(
        environment,
        authenticated(invitation.to_bytes(), domain),
        recipient or invitation.events[0].room,
        invitation.author,
    )
    if isinstance(outcome, BaseException):
        raise outcome
    return str(outcome)


def calendar_text_of_reply(raw: bytes) -> str:
    """The calendar of a message, unfolded."""
    message = message_from_bytes(raw)
    (part,) = (item for item in message.walk() if item.get_content_type() == "text/calendar")
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode().replace("\r\n ", "").replace("\n ", "")


async def list_busy_times(client: GraphQLClient, address: str) -> list[tuple[str, str]]:
    """The start and end of the bookings of a resource, as ISO 8601 without seconds."""
    document = """query ($by: ResourceRef!) { resource(by: $by) {
      bookings(first: 250) { nodes { startsAt endsAt } } } }"""
    resource = (await client(document, by={"address": address}))["resource"]
    return [(node["startsAt"][:16], node["endsAt"][:16]) for node in resource["bookings"]["nodes"]]
