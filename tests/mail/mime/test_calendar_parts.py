"""Calendar parts: invitations are parsed, and hostile ones use bounded time."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import ParsedAddress, ParsedCalendarEvent, parse_events
from mail.mime.calendar_events import MAX_ATTENDEES, MAX_EVENTS, unfold_lines

INVITATION = r"""BEGIN:VCALENDAR
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
ORGANIZER;CN=Nora Lindqvist:MAILTO:nora@example.com
ATTENDEE;ROLE=REQ-PARTICIPANT;PARTSTAT=NEEDS-ACTION;RSVP=TRUE;CN="Ada; L.":mailto:ada@example.org
ATTENDEE:mailto:bob@example.org
SUMMARY;LANGUAGE=en-US:Lamps\, oil\; and wicks\nfor all
DTSTART;TZID=W. Europe Standard Time:20300701T100000
DTEND;TZID=W. Europe Standard Time:20300701T113000
UID:040000008200E00074C5
LOCATION:The tower
BEGIN:VALARM
DESCRIPTION:REMINDER
TRIGGER;RELATED=START:-PT15M
SUMMARY:not this
END:VALARM
END:VEVENT
END:VCALENDAR
"""
CUSTOM_ZONE_INVITATION = INVITATION.replace("W. Europe Standard Time", "Customized Time Zone")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def parse_single_event(*lines: str, method: str | None = None) -> ParsedCalendarEvent:
    inner = "\r\n".join(("UID:1", *lines))
    text = f"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n{inner}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    (event,) = parse_events(text, method)
    return event


def test_outlook_invitation_is_parsed() -> None:
    (event,) = parse_events(INVITATION)
    assert event == ParsedCalendarEvent(
        "REQUEST",
        "040000008200E00074C5",
        "Lamps, oil; and wicks\nfor all",
        utc(2030, 7, 1, 8),
        utc(2030, 7, 1, 9, 30),
        all_day=False,
        location="The tower",
        organizer=ParsedAddress("Nora Lindqvist", "nora@example.com"),
        attendees=(
            ParsedAddress("Ada; L.", "ada@example.org"),
            ParsedAddress(None, "bob@example.org"),
        ),
    )


@pytest.mark.parametrize(
    ("local", "instant"),
    [
        ("20300115T100000", utc(2030, 1, 15, 9)),  # standard time since October of the year before
        ("20300330T100000", utc(2030, 3, 30, 9)),
        ("20300331T100000", utc(2030, 3, 31, 8)),
        ("20301026T100000", utc(2030, 10, 26, 8)),
        ("20301027T100000", utc(2030, 10, 27, 9)),
    ],
)
def test_time_zone_of_calendar_has_daylight_saving_time(local: str, instant: datetime) -> None:
    (event,) = parse_events(CUSTOM_ZONE_INVITATION.replace("20300701T100000", local))
    assert event.starts_at == instant


@pytest.mark.parametrize(
    ("line", "instant"),
    [
        ("DTSTART:20300701T100000Z", utc(2030, 7, 1, 10)),
        ("DTSTART;TZID=Europe/Berlin:20300701T100000", utc(2030, 7, 1, 8)),
        ('DTSTART;TZID="America/New_York":20300701T100000', utc(2030, 7, 1, 14)),
        ("DTSTART;TZID=W. Europe Standard Time:20300701T100000", utc(2030, 7, 1, 8)),
        ('DTSTART;TZID="Tokyo Standard Time":20300701T100000', utc(2030, 7, 1, 1)),
        ("DTSTART;TZID=Customized Time Zone:20300701T100000", None),
        ("DTSTART;TZID=/mozilla.org/20050126_1/Europe/Berlin:20300115T100000", utc(2030, 1, 15, 9)),
        ("DTSTART;VALUE=DATE:20300701", utc(2030, 7, 1)),
        ("DTSTART:20301231T235960Z", utc(2030, 12, 31, 23, 59, 59)),
        ("DTSTART:20300701T100000", None),  # local time without a zone
        ("DTSTART;TZID=Nowhere/Land:20300701T100000", None),
        ("DTSTART;TZID=../../etc/passwd:20300701T100000", None),
        ("DTSTART;TZID=Europe:20300701T100000", None),
        ("DTSTART;TZID=Asia/Tokyo:00010101T000000", None),
        ("DTSTART:20301301T100000Z", None),
        ("DTSTART:tomorrow", None),
    ],
)
def test_start_time_is_converted_to_utc_or_none(line: str, instant: datetime | None) -> None:
    assert parse_single_event(line).starts_at == instant


def test_date_without_time_is_all_day() -> None:
    event = parse_single_event("DTSTART;VALUE=DATE:20300701", "DTEND;VALUE=DATE:20300703")
    assert (event.all_day, event.ends_at) == (True, utc(2030, 7, 3))
    assert not parse_single_event("DTSTART:20300701T100000Z").all_day


@pytest.mark.parametrize(
    ("duration", "end"),
    [
        ("PT1H30M", utc(2030, 7, 1, 11, 30)),
        ("P1W", utc(2030, 7, 8, 10)),
        ("P1DT2H", utc(2030, 7, 2, 12)),
        ("-PT1H", None),
        ("P90D", utc(2030, 9, 29, 10)),
        ("for ever", None),
    ],
)
def test_end_time_is_computed_from_duration(duration: str, end: datetime | None) -> None:
    assert parse_single_event("DTSTART:20300701T100000Z", f"DURATION:{duration}").ends_at == end


@pytest.mark.parametrize(
    ("method_line", "part_method", "method"),
    [
        ("METHOD:CANCEL\r\n", "request", "CANCEL"),
        ("", "request", "REQUEST"),
        ("", None, "PUBLISH"),
        ("METHOD:<script>\r\n", None, "PUBLISH"),
    ],
)
def test_method_comes_from_calendar_or_mime_part(
    method_line: str, part_method: str | None, method: str
) -> None:
    text = f"BEGIN:VCALENDAR\r\n{method_line}BEGIN:VEVENT\r\nUID:1\r\nEND:VEVENT\r\nEND:VCALENDAR"
    (event,) = parse_events(text, part_method)
    assert event.method == method


def test_line_folded_inside_character_is_unfolded() -> None:
    folded = b"SUMMARY:Gr\xc3\r\n \xbc\xc3\r\n\t\x9fe"
    assert unfold_lines(folded).decode() == "SUMMARY:Grüße"
    assert parse_single_event(unfold_lines(folded).decode()).summary == "Grüße"


EXPENSIVE_CALENDARS = {
    "nested": "BEGIN:A\r\n" * 60_000,
    "never closed": "BEGIN:VCALENDAR\r\n" + "BEGIN:VEVENT\r\nUID:1\r\nEND:VEVENT\r\n" * 20_000,
    "attendees": "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:1\r\n" + "ATTENDEE:a@b\r\n" * 25_000,
    "parameters": "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID" + ";A=B" * 120_000,
    "quotes": "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID" + ';A="b",' * 70_000,
    "one line": "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:1\r\nSUMMARY:" + "\\\\n" * 170_000,
    "folds": "\r\n ".join("BEGIN:VCALENDAR") * 30_000,
    "zones": "BEGIN:VCALENDAR\r\n" + "".join(
        f"BEGIN:VTIMEZONE\r\nTZID:Z{n}\r\n" + INVITATION[INVITATION.index("BEGIN:STANDARD"):
        INVITATION.index("END:VTIMEZONE")] * 60 + "END:VTIMEZONE\r\n" for n in range(20)
    ) + "BEGIN:VEVENT\r\nUID:1\r\nDTSTART;TZID=Z1:20300101T000000\r\nEND:VEVENT\r\n" * 100,
}  # fmt: skip


@pytest.mark.parametrize("calendar_name", EXPENSIVE_CALENDARS)
def test_expensive_calendar_is_parsed_within_limits(calendar_name: str) -> None:
    text = EXPENSIVE_CALENDARS[calendar_name]
    started_at = time.process_time()
    events = parse_events(unfold_lines(text.encode()).decode())
    assert time.process_time() - started_at < 2
    assert len(events) <= MAX_EVENTS
    assert all(len(event.attendees) <= MAX_ATTENDEES for event in events)


def test_time_zone_with_secondly_rule_is_ignored() -> None:
    rule = "FREQ=YEARLY;INTERVAL=1;BYDAY=-1SU;BYMONTH=10"
    text = CUSTOM_ZONE_INVITATION.replace(rule, "FREQ=SECONDLY")
    (event,) = parse_events(text)
    assert event.starts_at is None
    assert event.summary


CALENDAR_FRAGMENTS = (
    "BEGIN: END: VCALENDAR VEVENT VTIMEZONE STANDARD UID: DTSTART ;TZID= : ; , \" \\ \\n 2030 "
    "0101T000000 Z Europe/Berlin TZOFFSETTO:+0100 TZOFFSETFROM:+9999 RRULE: FREQ=YEARLY BYDAY=5SU "
    "ATTENDEE mailto: METHOD: 99990101T000000 00010101T000000 16010101T000000"
)  # fmt: skip


@given(
    st.lists(
        st.sampled_from([*CALENDAR_FRAGMENTS.split(), "\r\n", "\r\n ", "\0", "é"]), max_size=60
    )
)
@settings(max_examples=500)
def test_random_calendar_does_not_raise(fragments: list[str]) -> None:
    parse_events("BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n" + "".join(fragments))
    parse_events(INVITATION.replace("20300701T100000", "".join(fragments)))
    parse_events(CUSTOM_ZONE_INVITATION.replace("16010101T030000", "".join(fragments)))
