"""Replies of resources to organizers (iTIP, RFC 5546; iMIP, RFC 6047)."""

from dataclasses import dataclass
from datetime import date, datetime
from email.policy import SMTP
from typing import Any

import icalendar
from icalendar.prop import vCalAddress, vText

from mail.compose import message_builder, text_parts
from mail.compose.message_draft import (
    CONTROL_CHARACTERS,
    MAX_NAME_BYTES,
    CustomHeader,
    MessageDraft,
)
from mail.mime.header_encoding import NamedAddress
from mail.resources.event_times import EventTime
from mail.resources.invitation_parser import Invitation, InvitedComponent
from mail.resources.unbookable_event import UnbookableEvent
from mail.storage.storable_message import StorableMessage
from models.resources.tables import ResourceKind
from models.runtime.environment import Environment

_POLICY = SMTP.clone(cte_type="7bit")
_MAX_SUMMARY_LENGTH = 200  # characters in the subject
_CALENDAR_USER_TYPES = {
    ResourceKind.LOCATION: "ROOM",
    ResourceKind.THING: "RESOURCE",
    ResourceKind.GROUP: "GROUP",
}
PRODUCT = "-//Merganser//Resources//EN"


@dataclass(frozen=True, slots=True)
class ReplyingResource:
    """The resource that replies."""

    address: str
    name: str
    kind: ResourceKind


@dataclass(frozen=True, slots=True)
class ReplyContent:
    """The content of a reply: iTIP method, PARTSTAT, title and text for people."""

    method: str  # REPLY or DECLINECOUNTER
    participation: str  # PARTSTAT: ACCEPTED or DECLINED
    title: str
    text: str


def build_reply(
    environment: Environment,
    invitation: Invitation,
    message: StorableMessage,
    resource: ReplyingResource,
    content: ReplyContent,
) -> bytes:
    """Build the reply to the author of a message, who is its organizer or an attendee."""
    author = message.facts.from_[0]
    name = CONTROL_CHARACTERS.sub("", author.name or "")[: MAX_NAME_BYTES // 4].strip()
    summary = " ".join((invitation.summary or "").split())[:_MAX_SUMMARY_LENGTH]
    summary = CONTROL_CHARACTERS.sub("", summary)
    domain = resource.address.rpartition("@")[2]
    message_ids = [message.facts.message_id] if message.facts.message_id else []
    draft = MessageDraft(
        from_=NamedAddress(resource.address, resource.name[: MAX_NAME_BYTES // 4]),
        date=environment.now(),
        message_id=message_builder.new_message_id(environment.random_bytes(16), domain),
        to=[NamedAddress(author.address, name or None)],
        subject=f"{content.title}: {summary}" if summary else content.title,
        headers=[
            CustomHeader("Auto-Submitted", "auto-replied"),  # RFC 3834, section 5
            CustomHeader("X-Auto-Response-Suppress", "All"),
        ],
        in_reply_to=message.facts.message_id,
        references=[*message.facts.references, *message_ids],
    )
    calendar = _reply_calendar(environment.now(), invitation, resource, content)
    return message_builder.validate_and_build_message(draft, _mime_entity(content, calendar))


def _mime_entity(content: ReplyContent, calendar: str) -> bytes:
    """Build the text and the calendar as alternatives, with their MIME header fields."""
    entity = text_parts.text_part(content.text, "plain", _POLICY)
    entity.make_alternative()
    part = text_parts.text_part(calendar, "calendar", _POLICY)
    part.set_param("method", content.method)
    entity.attach(part)
    return entity.as_bytes(policy=_POLICY)


def _reply_calendar(
    now: datetime, invitation: Invitation, resource: ReplyingResource, content: ReplyContent
) -> str:
    """Return the calendar of a reply, with one component for each one of the invitation."""
    calendar = icalendar.Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    calendar.add("method", content.method)
    components = (
        [invitation.main_component] if invitation.is_for_series else list(invitation.components)
    )
    for component in components:
        event = icalendar.Event()
        event.add("uid", invitation.uid)
        event.add("dtstamp", now)
        event.add("sequence", component.sequence)
        event.add("organizer", _calendar_address(invitation.organizer.address))
        _add_times(event, invitation, component)
        if content.method == "REPLY":
            attendee = _calendar_address(resource.address)
            attendee.params["CN"] = vText(resource.name)
            attendee.params["CUTYPE"] = vText(_CALENDAR_USER_TYPES[resource.kind])
            attendee.params["PARTSTAT"] = vText(content.participation)
            event.add("attendee", attendee, encode=False)
        if invitation.summary:
            event.add("summary", invitation.summary)
        event.add("comment", content.text)
        calendar.add_component(event)
    content_bytes: bytes = calendar.to_ical()
    return content_bytes.decode()


def _calendar_address(address: str) -> Any:
    return vCalAddress(f"mailto:{address}")


def _add_times(event: icalendar.Event, invitation: Invitation, component: InvitedComponent) -> None:
    """Add RECURRENCE-ID, DTSTART and DTEND in UTC, as far as they are valid."""
    for name in ("RECURRENCE-ID", "DTSTART", "DTEND"):
        line = component.lines.get(name)
        if line is None or (name != "RECURRENCE-ID" and component.repeated_lines):
            continue
        try:
            value: EventTime = invitation.times.first_time_of_line(line)
            is_date = isinstance(value, date) and not isinstance(value, datetime)
            event.add(
                name.lower(), value if is_date else invitation.times.utc_from_event_time(value)
            )
        except UnbookableEvent:
            continue  # the time is unreadable: the UID names the event
