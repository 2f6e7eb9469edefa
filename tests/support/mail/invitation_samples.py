"""Invitations in the form that Google Calendar, Outlook, Apple Calendar and Thunderbird write.

The first three are series of ten meetings on Mondays from 10:00 to 11:00 in Berlin; Thunderbird
invites to one meeting. Names, addresses and identifiers are invented.
"""

import base64

_BERLIN = """BEGIN:VTIMEZONE
TZID:Europe/Berlin
X-LIC-LOCATION:Europe/Berlin
BEGIN:DAYLIGHT
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
TZNAME:GMT+2
DTSTART:19700329T020000
RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1SU
END:DAYLIGHT
BEGIN:STANDARD
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
TZNAME:GMT+1
DTSTART:19701025T030000
RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU
END:STANDARD
END:VTIMEZONE
"""
_GOOGLE_CALENDAR = f"""BEGIN:VCALENDAR
PRODID:-//Google Inc//Google Calendar 70.9054//EN
VERSION:2.0
CALSCALE:GREGORIAN
METHOD:REQUEST
{_BERLIN}BEGIN:VEVENT
DTSTART;TZID=Europe/Berlin:20300107T100000
DTEND;TZID=Europe/Berlin:20300107T110000
RRULE:FREQ=WEEKLY;WKST=MO;COUNT=10;BYDAY=MO
DTSTAMP:20291231T080000Z
ORGANIZER;CN=Carol Example:mailto:carol@far.example
UID:4gk1q0l0a1b2c3d4e5f6g7h8i9@google.com
ATTENDEE;CUTYPE=INDIVIDUAL;ROLE=REQ-PARTICIPANT;PARTSTAT=ACCEPTED;RSVP=TRUE
 ;CN=Carol Example;X-NUM-GUESTS=0:mailto:carol@far.example
ATTENDEE;CUTYPE=INDIVIDUAL;ROLE=REQ-PARTICIPANT;PARTSTAT=NEEDS-ACTION;RSVP=
 TRUE;CN=ROOM_ADDRESS;X-NUM-GUESTS=0:mailto:ROOM_ADDRESS
X-GOOGLE-CONFERENCE:https://meet.google.com/abc-defg-hij
X-MICROSOFT-CDO-OWNERAPPTID:1234567890
CREATED:20291230T080000Z
DESCRIPTION:-::~:~::~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~:~
 \\nJoin with Google Meet: https://meet.google.com/abc-defg-hij
LAST-MODIFIED:20291231T080000Z
LOCATION:
SEQUENCE:0
STATUS:CONFIRMED
SUMMARY:Weekly planning
TRANSP:OPAQUE
END:VEVENT
END:VCALENDAR
"""
_OUTLOOK_CALENDAR = """BEGIN:VCALENDAR
METHOD:REQUEST
PRODID:Microsoft Exchange Server 2010
VERSION:2.0
BEGIN:VTIMEZONE
TZID:W. Europe Standard Time
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
BEGIN:VEVENT
ORGANIZER;CN=Carol Example:mailto:carol@far.example
ATTENDEE;ROLE=REQ-PARTICIPANT;PARTSTAT=NEEDS-ACTION;RSVP=TRUE;CN=Dave:mailto
 :dave@far.example
ATTENDEE;CUTYPE=RESOURCE;ROLE=NON-PARTICIPANT;PARTSTAT=NEEDS-ACTION;RSVP=TRU
 E;CN=Meeting Room:mailto:ROOM_ADDRESS
DESCRIPTION;LANGUAGE=de-DE:\\n________________________________\\nMicrosoft Team
 s\\n
RRULE:FREQ=WEEKLY;COUNT=10;INTERVAL=1;BYDAY=MO;WKST=MO
UID:040000008200E00074C5B7101A82E00800000000B0A1C2D3E4F5DA01000000000000000
 010000000A1B2C3D4E5F60718293A4B5C6D7E8F90
SUMMARY;LANGUAGE=de-DE:Weekly planning
DTSTART;TZID=W. Europe Standard Time:20300107T100000
DTEND;TZID=W. Europe Standard Time:20300107T110000
CLASS:PUBLIC
PRIORITY:5
DTSTAMP:20291231T080000Z
TRANSP:OPAQUE
STATUS:CONFIRMED
SEQUENCE:0
LOCATION;LANGUAGE=de-DE:Meeting Room
X-MICROSOFT-CDO-APPT-SEQUENCE:0
X-MICROSOFT-CDO-OWNERAPPTID:2122334455
X-MICROSOFT-CDO-BUSYSTATUS:TENTATIVE
X-MICROSOFT-CDO-INTENDEDSTATUS:BUSY
X-MICROSOFT-CDO-ALLDAYEVENT:FALSE
X-MICROSOFT-CDO-IMPORTANCE:1
X-MICROSOFT-CDO-INSTTYPE:1
X-MICROSOFT-DISALLOW-COUNTER:FALSE
BEGIN:VALARM
DESCRIPTION:REMINDER
TRIGGER;RELATED=START:-PT15M
ACTION:DISPLAY
END:VALARM
END:VEVENT
END:VCALENDAR
"""
_APPLE_CALENDAR = f"""BEGIN:VCALENDAR
CALSCALE:GREGORIAN
VERSION:2.0
X-WR-CALNAME:Weekly planning
METHOD:REQUEST
PRODID:-//Apple Inc.//macOS 14.5//EN
{_BERLIN}BEGIN:VEVENT
CREATED:20291230T080000Z
UID:0F3B6A5C-7D2E-4E0B-9C1A-2B3C4D5E6F70
RRULE:FREQ=WEEKLY;COUNT=10
DTEND;TZID=Europe/Berlin:20300107T110000
TRANSP:OPAQUE
X-APPLE-TRAVEL-ADVISORY-BEHAVIOR:AUTOMATIC
SUMMARY:Weekly planning
DTSTART;TZID=Europe/Berlin:20300107T100000
DTSTAMP:20291231T080000Z
ORGANIZER;CN="Carol Example";EMAIL="carol@far.example":mailto:carol@far.example
SEQUENCE:0
ATTENDEE;CUTYPE=ROOM;CN="Meeting Room";PARTSTAT=NEEDS-ACTION;ROLE=REQ-PARTIC
 IPANT;RSVP=TRUE:mailto:ROOM_ADDRESS
ATTENDEE;CN="Carol Example";CUTYPE=INDIVIDUAL;PARTSTAT=ACCEPTED;ROLE=CHAIR:/
 aMTIzNDU2Nzg5MA/principal/
BEGIN:VALARM
X-WR-ALARMUID:1A2B3C4D-5E6F-7081-92A3-B4C5D6E7F809
UID:1A2B3C4D-5E6F-7081-92A3-B4C5D6E7F809
TRIGGER:-PT15M
ACTION:DISPLAY
END:VALARM
END:VEVENT
END:VCALENDAR
"""
_THUNDERBIRD_CALENDAR = """BEGIN:VCALENDAR
PRODID:-//Mozilla.org/NONSGML Mozilla Calendar V1.1//EN
VERSION:2.0
METHOD:REQUEST
BEGIN:VTIMEZONE
TZID:Europe/Berlin
X-TZINFO:Europe/Berlin[2024a]
BEGIN:STANDARD
TZOFFSETTO:+010000
TZOFFSETFROM:+005328
TZNAME:Europe/Berlin(STD)
DTSTART:18930401T000000
RDATE:18930401T000000
END:STANDARD
END:VTIMEZONE
BEGIN:VEVENT
CREATED:20291230T080000Z
LAST-MODIFIED:20291231T080000Z
DTSTAMP:20291231T080000Z
UID:6a1f0c1e-2b3d-4c5e-8f90-a1b2c3d4e5f6
SUMMARY:Weekly planning
ORGANIZER;CN=Carol Example;PARTSTAT=ACCEPTED;ROLE=CHAIR:mailto:carol@far.exa
 mple
ATTENDEE;CN=ROOM_ADDRESS;PARTSTAT=NEEDS-ACTION;CUTYPE=INDIVIDUAL;ROLE=REQ-PA
 RTICIPANT;RSVP=TRUE:mailto:ROOM_ADDRESS
X-MOZ-SEND-INVITATIONS:TRUE
X-MOZ-SEND-INVITATIONS-UNDISCLOSED:FALSE
DTSTART;TZID=Europe/Berlin:20300107T100000
DTEND;TZID=Europe/Berlin:20300107T110000
TRANSP:OPAQUE
END:VEVENT
END:VCALENDAR
"""
_HEAD = (
    "From: Carol Example <carol@far.example>\r\nTo: ROOM_ADDRESS\r\n"
    "Subject: Invitation: Weekly planning\r\nDate: Mon, 31 Dec 2029 08:00:00 +0000\r\n"
    "Message-ID: <1@far.example>\r\nMIME-Version: 1.0\r\n"
)


def _part(content_type: str, content: str, *headers: str) -> str:
    """A MIME part in base64."""
    fields = [f"Content-Type: {content_type}", "Content-Transfer-Encoding: base64", *headers]
    encoded = base64.encodebytes(content.encode()).decode().replace("\n", "\r\n")
    return "\r\n".join([*fields, "", encoded])


def _multipart(subtype: str, boundary: str, *parts: str) -> str:
    """A multipart entity."""
    body = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts)
    head = f'Content-Type: multipart/{subtype}; boundary="{boundary}"'
    return f"{head}\r\n\r\n{body}--{boundary}--\r\n"


def _google(calendar: str) -> str:
    alternative = _multipart(
        "alternative",
        "001",
        _part('text/plain; charset="UTF-8"; format=flowed; delsp=yes', "You are invited.\r\n"),
        _part('text/html; charset="UTF-8"', "<p>You are invited.</p>\r\n"),
        _part('text/calendar; charset="UTF-8"; method=REQUEST', calendar),
    )
    attached = _part(
        'application/ics; name="invite.ics"',
        calendar,
        'Content-Disposition: attachment; filename="invite.ics"',
    )
    fields = (
        "Sender: Google Calendar <calendar-notification@google.com>\r\n"
        "Auto-Submitted: auto-generated\r\n"
    )
    return _HEAD + fields + _multipart("mixed", "000", alternative, attached)


def _outlook(calendar: str) -> str:
    fields = "Thread-Topic: Weekly planning\r\nX-MS-Has-Attach:\r\nContent-Language: de-DE\r\n"
    alternative = _multipart(
        "alternative",
        "_000_AM0PR01MB_",
        _part('text/plain; charset="iso-8859-1"', "Weekly planning\r\n"),
        _part('text/html; charset="iso-8859-1"', "<p>Weekly planning</p>\r\n"),
        _part('text/calendar; charset="utf-8"; method=REQUEST', calendar),
    )
    return _HEAD + fields + alternative


def _apple(calendar: str) -> str:
    name = 'name="iCal-20291231-080000.ics"'
    disposition = 'Content-Disposition: attachment; filename="iCal-20291231-080000.ics"'
    text = _part("text/plain; charset=us-ascii", "Carol invited you.\r\n")
    part = _part(f"text/calendar; charset=utf-8; method=REQUEST; {name}", calendar, disposition)
    return _HEAD + "X-Mailer: Apple Mail (2.3774)\r\n" + _multipart("mixed", "Apple-1", text, part)


def _thunderbird(calendar: str) -> str:
    alternative = _multipart(
        "alternative",
        "------------a",
        _part("text/plain; charset=UTF-8", "Carol has invited you.\r\n"),
        _part("text/calendar; charset=UTF-8; method=REQUEST", calendar),
    )
    attached = _part(
        'application/ics; name="invite.ics"',
        calendar,
        'Content-Disposition: attachment; filename="invite.ics"',
    )
    fields = "User-Agent: Mozilla Thunderbird\r\n"
    return _HEAD + fields + _multipart("mixed", "------------b", alternative, attached)


_WRITERS = {
    "google": (_google, _GOOGLE_CALENDAR),
    "outlook": (_outlook, _OUTLOOK_CALENDAR),
    "apple": (_apple, _APPLE_CALENDAR),
    "thunderbird": (_thunderbird, _THUNDERBIRD_CALENDAR),
}
SAMPLE_NAMES = tuple(_WRITERS)


def invitation_sample(name: str, room: str) -> bytes:
    """The invitation of this program to a room, from carol@far.example."""
    write, calendar = _WRITERS[name]
    text = calendar.replace("ROOM_ADDRESS", room).replace("\n", "\r\n")
    return write(text).replace("ROOM_ADDRESS", room).encode()
