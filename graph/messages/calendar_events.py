"""Events of the calendars in messages."""

from datetime import datetime

import strawberry

from graph.messages.mime_parts import MailAddress
from graph.types.errors import attribute_field
from mail import mime
from models.messages.mime_values import CalendarMethod


@strawberry.type(description="Event of a calendar in a message (RFC 5545), such as an invitation.")
class CalendarEvent:
    method: CalendarMethod | None = attribute_field(
        "Method of the calendar (RFC 5546), else that of its MIME part. Null if it is none of the "
        "enum. PUBLISH if neither has a method."
    )
    uid: str | None = attribute_field("UID of the event. Null if it has none.")
    summary: str | None = attribute_field(
        "Title of the event, cut to 1,000 characters. Null if it has none."
    )
    starts_at: datetime | None = attribute_field(
        "Time when the event starts. Null if it is missing or in an unknown time zone. For an "
        "all-day event, midnight UTC of the first day."
    )
    ends_at: datetime | None = attribute_field(
        "Time when the event ends, computed from its duration if it has no end. Null if both are "
        "missing, or in an unknown time zone. For an all-day event, midnight UTC of the day after "
        "the last one."
    )
    all_day: bool = attribute_field("True if the event has dates without times.")
    location: str | None = attribute_field(
        "Place of the event, cut to 1,000 characters. Null if it has none."
    )
    organizer: MailAddress | None = attribute_field(
        "Person who organizes the event. Null if the event names none."
    )
    attendees: list[MailAddress] = attribute_field(
        "People who are invited to the event, at most 1,000."
    )

    @classmethod
    def from_event(cls, event: mime.ParsedCalendarEvent) -> "CalendarEvent":
        """Return the GraphQL object of a calendar event."""

        def mail_address(person: mime.ParsedAddress) -> MailAddress:
            return MailAddress.from_row((person.name, person.address))

        return cls(
            method=CalendarMethod.__members__.get(event.method),
            uid=event.uid or None,
            summary=event.summary,
            starts_at=event.starts_at,
            ends_at=event.ends_at,
            all_day=event.all_day,
            location=event.location,
            organizer=mail_address(event.organizer) if event.organizer else None,
            attendees=[mail_address(attendee) for attendee in event.attendees],
        )
