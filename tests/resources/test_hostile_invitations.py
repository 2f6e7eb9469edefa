"""Invitations beyond the limits, and invalid ones, are declined or refused."""

import random
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.envelope.resource_refusal import ResourceMailRefused
from mail.mime.calendar_events import MAX_CALENDAR_BYTES
from mail.resources import invitation_answers
from mail.resources.invitation_parser import address_key, parse_invitation
from mail.resources.occurrences import plan_occurrences
from mail.resources.unbookable_event import UnbookableEvent
from models.errors import ServiceUnavailable
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail.invitations import (
    CUSTOM_TIME_ZONE,
    CalendarEvent,
    Invitation,
    authenticated,
    calendar_message,
    deliver_invitation,
    deliver_to_resource,
    list_busy_times,
    meeting,
    trust_front_server,
)
from tests.support.operations.resource_operations import create_resource
from tests.support.stores.counter_check import select_rows

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ROOM = "room@example.org"
START = "DTSTART:20300110T100000Z\nDURATION:PT1H"
MAX_CPU_SECONDS = 30  # for one invitation; it takes 3 s at most
DATES = [datetime(2030, 1, 10, 10, tzinfo=UTC) + timedelta(days=n) for n in range(5000)]


OBSERVANCE = """BEGIN:STANDARD
DTSTART:19990101T000000
TZOFFSETFROM:+0100
TZOFFSETTO:+0100
END:STANDARD
"""


def listed(name: str, count: int) -> str:
    return f"{name}:" + ",".join(f"{day:%Y%m%dT%H%M%SZ}" for day in DATES[:count])


@pytest.fixture
async def room(ada: GraphQLClient, root: GraphQLClient) -> str:
    assert ada
    trust_front_server(root.environment)
    return str((await create_resource(root, bookingLimit=1))["address"])


@pytest.mark.usefixtures("ada")
async def test_unbookable_event_is_declined_with_the_reason(
    environment: Environment, root: GraphQLClient
) -> None:
    trust_front_server(environment)
    cases: list[tuple[str, str]] = [
        (f"{START}\nRRULE:FREQ=SECONDLY", "recurs more than once a day"),
        (f"{START}\nRRULE:FREQ=SECONDLY;COUNT=2", "recurs more than once a day"),
        (f"{START}\nRRULE:FREQ=HOURLY", "recurs more than once a day"),
        (f"{START}\nRRULE:FREQ=DAILY;BYSECOND=1,2", "recurs more than once a day"),
        (f"{START}\nRRULE:FREQ=DAILY;COUNT=1001", "more than 1,000 occurrences"),
        (f"{START}\nRRULE:FREQ=DAILY;UNTIL=20331231T000000Z", "more than 1,000 occurrences"),
        (f"{START}\nRRULE:FREQ=DAILY;COUNT=0", "more than 1,000 occurrences"),
        (f"{START}\nRRULE:FREQ=YEARLY;COUNT=9", "more than five years ahead"),
        (f"{START}\n{listed('RDATE', 1001)}", "lists too many dates"),
        (f"{START}\n{listed('RDATE', 600)}\n{listed('EXDATE', 600)}", "lists too many dates"),
        (f"{START}\nRRULE:FREQ=DAILY\nRRULE:FREQ=WEEKLY", "more than one rule"),
        (f"{START}\nRRULE:FREQ=WEEKLY;BYMONTH=13", "is not supported"),
        (f"{START}\nRRULE:FREQ=WEEKLY;INTERVAL=99999999999999999999", "is not supported"),
        (f"{START}\nRRULE:{'FREQ=DAILY;' * 100}", "is not valid"),
        (f"{START}\nRRULE:nonsense", "is not valid"),
        (f"{START}\nRRULE:FREQ=DAILY;BYDAY=ZZ", "are not valid"),
        ("DTSTART:20360110T100000Z\nDURATION:PT1H", "more than five years ahead"),
        ("DTSTART:20200110T100000Z\nDURATION:PT1H", "is over"),
        ("DTSTART:20300110T100000Z\nDURATION:P400D", "lasts longer than a year"),
        ("DTSTART:20300110T100000Z\nDURATION:P99999999999D", "are not valid"),
        ("DTSTART:20300110T100000Z\nDURATION:-PT1H", "ends before it starts"),
        ("DTSTART:20300110T100000Z\nDTEND:20300109T100000Z", "ends before it starts"),
        ("DTSTART:99991231T235959Z\nDURATION:PT1H", "out of range"),
        ("DTSTART:20300231T100000Z\nDURATION:PT1H", "is not valid"),
        ("DTSTART:tomorrow", "is not valid"),
        ("DTSTART;TZID=Mars/Olympus:20300110T100000\nDURATION:PT1H", "Mars/Olympus is unknown"),
        (f"DTSTART;TZID={'x' * 5000}:20300110T100000", "is unknown"),
        ("DTSTART;TZID=../../etc/passwd:20300110T100000", "is unknown"),
        ("SUMMARY:no time", "has no start"),
        ("DTSTART:19500110T100000Z\nRRULE:FREQ=DAILY", "out of range"),
        ("DTSTART:19990110T100000Z\nRRULE:FREQ=DAILY", "20 years ago"),
    ]
    for case in each_case(cases):
        with case as (times, reason):
            room = (await create_resource(root, bookingLimit=1))["address"]
            invitation = replace(meeting(room, times), calendar_lines="")
            result = await deliver_invitation(environment, invitation)
            assert result.startswith("DECLINED: ")
            assert reason in result
            assert await list_busy_times(root, room) == []
            # the next invitation to the event is booked
            assert await deliver_invitation(environment, meeting(room, sequence=1)) == "ACCEPTED"


def test_addresses_that_differ_in_more_than_case_have_different_keys() -> None:
    cases: list[tuple[str, str]] = [
        ("carol@straße.example", "carol@strasse.example"),
        ("carol@λόγος.example", "carol@λόγοσ.example"),
        ("\u017fam@far.example", "sam@far.example"),
    ]
    for case in each_case(cases):
        with case as (address, other):
            assert address_key(address) != address_key(other)
    assert address_key("Jose\u0301@FAR.example") == "josé@far.example"


async def test_time_zone_with_an_invalid_observance_is_unknown(
    environment: Environment, room: str
) -> None:
    times = "DTSTART;TZID=Custom Time:20300110T100000\nDURATION:PT1H"
    cases: list[tuple[str, str]] = [
        ("TZOFFSETTO:+0100", "TZOFFSETTO:+2400"),
        ("BYMONTH=10", "BYMONTH=10;UNTIL=99991231"),
        ("END:VTIMEZONE\n", 9 * OBSERVANCE + "END:VTIMEZONE\n"),
    ]
    for number, case in enumerate(each_case(cases)):
        with case as (old, new):
            invitation = meeting(room, times, stamp="20291231T000000", uid=f"u{number}")
            zone = CUSTOM_TIME_ZONE.replace(old, new)
            result = await deliver_invitation(environment, replace(invitation, calendar_lines=zone))
            assert result == "DECLINED: The time zone Custom Time is unknown."


async def test_occurrence_with_an_unreadable_time_is_declined(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await deliver_invitation(environment, meeting(room)) == "ACCEPTED"
    for times in (
        f"RECURRENCE-ID;TZID=Mars:20300110T100000\n{START}",
        f"RECURRENCE-ID;RANGE=THISANDFUTURE:20300110T100000Z\n{START}",
    ):
        assert (await deliver_invitation(environment, meeting(room, times, sequence=1))).startswith(
            "DECLINED: "
        )
    assert len(await list_busy_times(root, room)) == 1


async def test_invitation_with_10000_attendees_is_booked(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    attendees = "".join(f"ATTENDEE:mailto:p{n}@far.example\n" for n in range(10_000))
    started = time.process_time()
    event = CalendarEvent(room, others=attendees)
    assert await deliver_invitation(environment, Invitation((event,))) == "ACCEPTED"
    assert time.process_time() - started < MAX_CPU_SECONDS
    assert len(await list_busy_times(root, room)) == 1


async def test_calendar_beyond_the_limits_is_refused(environment: Environment, room: str) -> None:
    cases: list[bytes] = [
        b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\n" + b"X-A:" + b"x" * MAX_CALENDAR_BYTES,
        b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\n" + b"BEGIN:VEVENT\r\n" * 5000,
        b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\n" + b"BEGIN:VEVENT\r\nEND:VEVENT\r\n" * 5000,
        b"\xff\xfe\x00\x00" * 100,
        b"",
    ]
    for case in each_case(cases):
        with case as calendar:
            raw = authenticated(calendar_message(calendar, "carol@far.example", room))
            outcome = await deliver_to_resource(environment, raw, room)
            assert isinstance(outcome, ResourceMailRefused)
            assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(0,)]


async def test_control_characters_and_long_texts_are_stored_safely(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    event = CalendarEvent(
        room, summary="a\x00\x1b[31m\u202e" + "é" * 5000, uid="u" + "\x07" * 3, others="X-A:1\n"
    )
    assert await deliver_invitation(environment, Invitation((event,))) == "ACCEPTED"
    document = """query ($by: ResourceRef!) { resource(by: $by) {
      bookings { nodes { uid summary } } } }"""
    (node,) = (await root(document, by={"address": room}))["resource"]["bookings"]["nodes"]
    assert "\x00" not in node["summary"]
    assert len(node["summary"]) <= 1000


async def test_many_changed_occurrences_are_planned_in_bounded_time(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    start = "DTSTART;TZID=Custom Time:20300110T100000\nDURATION:PT1H"
    series = CalendarEvent(room, f"{start}\nRRULE:FREQ=DAILY;COUNT=1000")
    changed = tuple(
        CalendarEvent(
            room,
            f"RECURRENCE-ID;TZID=Custom Time:{day:%Y%m%dT%H%M%S}\n"
            f"DTSTART;TZID=Custom Time:{day:%Y%m%dT}120000\nDURATION:PT1H",
        )
        for day in DATES[:90]
    )
    started = time.process_time()
    assert await deliver_invitation(environment, Invitation((series, *changed))) == "ACCEPTED"
    assert time.process_time() - started < MAX_CPU_SECONDS
    assert await select_rows(
        environment, "SELECT count(*) FROM bookings WHERE state = 'BOOKED'"
    ) == [(1000,)]
    assert len(await list_busy_times(root, room)) == 250


async def test_invitation_is_deferred_while_many_wait(
    environment: Environment, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(invitation_answers, "MAX_EXPANSIONS", 0)
        with pytest.raises(ServiceUnavailable):
            await deliver_invitation(environment, meeting(room))
    assert await deliver_invitation(environment, meeting(room)) == "ACCEPTED"


LINES = [
    "DTSTART:20300110T100000Z", "DTEND:20300110T110000Z", "DURATION:PT1H", "DURATION:P",
    "DTSTART;VALUE=DATE:20300110", "DTEND;VALUE=DATE:20300111",
    "DTSTART;TZID=Custom Time:20300330T023000",
    "RRULE:FREQ=DAILY;COUNT=3", "RRULE:FREQ=WEEKLY;BYDAY=MO,5TU", "RRULE:FREQ=MONTHLY;BYDAY=-1FR",
    "RRULE:FREQ=YEARLY;BYMONTHDAY=-1;UNTIL=20310101", "RDATE:20300112T100000Z,20300113",
    "RDATE;VALUE=PERIOD:20300112T100000Z/PT1H", "EXDATE;VALUE=DATE:20300111", "EXDATE:x",
    "RECURRENCE-ID:20300111T100000Z", "RECURRENCE-ID;RANGE=THISANDFUTURE:20300111", "SEQUENCE:x",
    "STATUS:CANCELLED", "DTSTAMP:99999999T999999Z", "BEGIN:VALARM", "END:VALARM", "END:VEVENT",
    "ORGANIZER:mailto:x@y.example", "UID:other", "SUMMARY:\\", ";:;", " folded", "\t", "RRULE:",
]  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(LINES), max_size=6), min_size=1, max_size=3))
def test_random_events_are_planned_declined_or_refused(events: list[list[str]]) -> None:
    invitation = Invitation(
        tuple(CalendarEvent(ROOM, "\n".join(lines)) for lines in events),
        calendar_lines=CUSTOM_TIME_ZONE,
    )
    try:
        parsed = parse_invitation(invitation.calendar, "utf-8", "REQUEST")
        plan = plan_occurrences(parsed, NOW)
    except (ResourceMailRefused, UnbookableEvent):
        return
    assert 1 <= len(plan.occurrences) <= 1000
    assert all(item.starts_at <= item.ends_at for item in plan.occurrences)


def test_damaged_calendars_are_parsed_or_refused() -> None:
    randomizer = random.Random(7)  # noqa: S311 - test data
    for _ in range(300):
        calendar = bytearray(meeting(ROOM, f"{START}\nRRULE:FREQ=DAILY;COUNT=3").calendar)
        for _ in range(randomizer.randint(1, 20)):
            calendar[randomizer.randrange(len(calendar))] = randomizer.randrange(256)
        arguments: Any = bytes(calendar), randomizer.choice(["utf-8", "utf-16", "x-none"]), None
        try:
            plan_occurrences(parse_invitation(*arguments), NOW)
        except (ResourceMailRefused, UnbookableEvent):
            continue
