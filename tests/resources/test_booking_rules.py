"""Booking of resources by invitations: policies, series, rebooking, cancellation and races."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from mail.maintenance import housekeeping
from mail.resources import bookings
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.mail.invitations import (
    CalendarEvent,
    Invitation,
    calendar_text_of_reply,
    cancellation,
    deliver_invitation,
    hours,
    list_busy_times,
    meeting,
    trust_front_server,
)
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.operations.resource_operations import create_resource
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("ada", "verify_consistency")

ROOM = "room@example.org"
BUSY = "DECLINED: The resource is not free at this time."
SERIES_BUSY = "DECLINED: The resource is not free at the time of each occurrence."
DAILY = "DTSTART:20300110T100000Z\nDTEND:20300110T110000Z\nRRULE:FREQ=DAILY;COUNT=3"


@pytest.fixture
async def room(root: GraphQLClient, environment: Environment) -> str:
    """A room for one event at a time."""
    trust_front_server(environment)
    return str((await create_resource(root, bookingLimit=1))["address"])


async def book(environment: Environment, invitation: Invitation) -> str:
    return await deliver_invitation(environment, invitation)


async def test_request_is_booked_and_answered(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await book(environment, meeting(room)) == "ACCEPTED"
    assert await list_busy_times(root, room) == [("2030-01-10T10:00", "2030-01-10T11:00")]
    (reply,) = await load_queued_messages(environment)
    text = calendar_text_of_reply(reply)
    assert b"Auto-Submitted: auto-replied\r\n" in reply
    assert b"Subject: Accepted: Planning\r\n" in reply
    assert b"In-Reply-To: <invitation@far.example>\r\n" in reply
    assert b'method="REPLY"' in reply or b"method=REPLY" in reply
    for line in ("METHOD:REPLY", "UID:meeting-1", "SEQUENCE:0", "PARTSTAT=ACCEPTED", "CUTYPE=ROOM"):
        assert line in text
    ((sender, recipient),) = await select_rows(
        environment,
        "SELECT submissions.envelope_from, queue_entries.recipient FROM submissions "
        "JOIN queue_entries ON queue_entries.submission_id = submissions.id",
    )
    assert (sender, recipient) == ("", "carol@far.example")


async def test_repeated_delivery_changes_nothing_and_has_no_second_reply(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    invitation = meeting(room)
    assert await book(environment, invitation) == "ACCEPTED"
    assert await book(environment, invitation) == "REPEATED"
    assert len(await list_busy_times(root, room)) == 1
    assert len(await load_queued_messages(environment)) == 1


async def test_limit_counts_overlapping_bookings(
    environment: Environment, root: GraphQLClient
) -> None:
    trust_front_server(environment)
    address = (await create_resource(root, "Cars", kind="THING", bookingLimit=2))["address"]
    for number, (times, result) in enumerate(
        [
            (hours(10, 10, 12), "ACCEPTED"),
            (hours(10, 11, 13), "ACCEPTED"),
            (hours(10, 11, 12), BUSY),
            (hours(10, 12, 14), "ACCEPTED"),  # begins when the first one ends
            (hours(10, 9, 15), BUSY),
            (hours(10, 9, 11), "ACCEPTED"),
        ]
    ):
        assert await book(environment, meeting(address, times, uid=f"u{number}")) == result, times


async def test_unlimited_resource_accepts_all(
    environment: Environment, root: GraphQLClient
) -> None:
    trust_front_server(environment)
    cases: list[str] = ["ALWAYS_FREE", "UNLIMITED_SHOW_BUSY"]
    for case in each_case(cases):
        with case as policy:
            address = (await create_resource(root, bookingPolicy=policy))["address"]
            for number in range(3):
                assert await book(environment, meeting(address, uid=f"u{number}")) == "ACCEPTED"
            shown_count = 0 if policy == "ALWAYS_FREE" else 3
            assert len(await list_busy_times(root, address)) == shown_count


async def test_series_is_booked_whole_or_not_at_all(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await book(environment, meeting(room, hours(12), uid="single")) == "ACCEPTED"
    assert await book(environment, meeting(room, DAILY, uid="series")) == SERIES_BUSY
    assert await list_busy_times(root, room) == [("2030-01-12T10:00", "2030-01-12T11:00")]
    without_third_day = f"{DAILY}\nEXDATE:20300112T100000Z"
    changed = meeting(room, without_third_day, uid="series", sequence=1)
    assert await book(environment, changed) == "ACCEPTED"
    assert len(await list_busy_times(root, room)) == 3


async def test_changed_occurrence_of_a_series_is_booked_at_its_new_time(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    series = CalendarEvent(room, DAILY)
    moved = CalendarEvent(room, f"RECURRENCE-ID:20300111T100000Z\n{hours(11, 15, 16)}", sequence=1)
    assert await book(environment, Invitation((series, moved))) == "ACCEPTED"
    assert [start for start, _ in await list_busy_times(root, room)] == [
        "2030-01-10T10:00", "2030-01-11T15:00", "2030-01-12T10:00",
    ]  # fmt: skip
    again = replace(moved, times=f"RECURRENCE-ID:20300111T100000Z\n{hours(11, 17, 18)}", sequence=2)
    assert await book(environment, Invitation((again,))) == "ACCEPTED"
    assert [start for start, _ in await list_busy_times(root, room)] == [
        "2030-01-10T10:00", "2030-01-11T17:00", "2030-01-12T10:00",
    ]  # fmt: skip


async def test_series_keeps_local_time_over_daylight_saving(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    for number, zone in enumerate(("Europe/Berlin", "W. Europe Standard Time", "Custom Time")):
        start = f"20300330T{8 + number:02}0000"
        times = f"DTSTART;TZID={zone}:{start}\nDURATION:PT1H\nRRULE:FREQ=DAILY;COUNT=2"
        assert await book(environment, meeting(room, times, uid=f"u{number}")) == "ACCEPTED"
    assert [start for start, _ in await list_busy_times(root, room)] == [
        "2030-03-30T07:00", "2030-03-30T08:00", "2030-03-30T09:00",
        "2030-03-31T06:00", "2030-03-31T07:00", "2030-03-31T08:00",
    ]  # fmt: skip


async def test_higher_sequence_rebooks_and_lower_one_changes_nothing(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await book(environment, meeting(room, hours(10), sequence=1)) == "ACCEPTED"
    assert await book(environment, meeting(room, hours(11), sequence=2)) == "ACCEPTED"
    expected = [("2030-01-11T10:00", "2030-01-11T11:00")]
    assert await list_busy_times(root, room) == expected
    assert await book(environment, meeting(room, hours(12), sequence=1)) == "OUTDATED"
    assert await list_busy_times(root, room) == expected
    assert len(await load_queued_messages(environment)) == 2  # none for the outdated one
    # a time that overlaps only with the own booking
    longer = meeting(room, hours(11, 9, 12), sequence=3)
    assert await book(environment, longer) == "ACCEPTED"


async def test_declined_change_releases_the_old_time(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await book(environment, meeting(room, hours(12), uid="other")) == "ACCEPTED"
    assert await book(environment, meeting(room, hours(10))) == "ACCEPTED"
    assert await book(environment, meeting(room, hours(12), sequence=1)) == BUSY
    assert await list_busy_times(root, room) == [("2030-01-12T10:00", "2030-01-12T11:00")]


async def test_cancellation_releases_the_event_or_one_occurrence(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    series = meeting(room, DAILY)
    assert await book(environment, series) == "ACCEPTED"
    one = cancellation(series, times=f"RECURRENCE-ID:20300111T100000Z\n{hours(11)}")
    assert await book(environment, one) == "RELEASED"
    assert [start for start, _ in await list_busy_times(root, room)] == [
        "2030-01-10T10:00", "2030-01-12T10:00",
    ]  # fmt: skip
    later = cancellation(
        one, times=f"RECURRENCE-ID;RANGE=THISANDFUTURE:20300112T100000Z\n{hours(12)}"
    )
    assert await book(environment, later) == "RELEASED"
    assert len(await list_busy_times(root, room)) == 1
    assert await book(environment, cancellation(later, times=DAILY)) == "RELEASED"
    assert await list_busy_times(root, room) == []
    late = replace(series, headers={"Message-ID": "<late@far.example>"})
    assert await book(environment, late) == "OUTDATED"
    assert await list_busy_times(root, room) == []
    assert len(await load_queued_messages(environment)) == 1


async def test_another_organizer_cannot_change_a_booking(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    assert await book(environment, meeting(room)) == "ACCEPTED"
    stranger = "eve@evil.example"
    foreign = meeting(room, organizer=stranger, sequence=5)
    cancel = replace(cancellation(foreign), author=stranger)
    assert await book(environment, cancel) == "RELEASED"
    assert await book(environment, replace(foreign, author=stranger)) == "OUTDATED"
    assert len(await list_busy_times(root, room)) == 1


async def test_counter_and_refresh_are_answered(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    event = meeting(room)
    assert await book(environment, replace(event, method="REFRESH")) == "DECLINED"
    assert await book(environment, event) == "ACCEPTED"
    again = replace(event, method="REFRESH", headers={"Message-ID": "<2@far.example>"})
    assert await book(environment, again) == "ACCEPTED"
    proposal = replace(meeting(room, hours(15)), method="COUNTER", author="dave@far.example")
    assert await book(environment, proposal) == "DECLINED"
    assert len(await list_busy_times(root, room)) == 1
    texts = [calendar_text_of_reply(raw) for raw in await load_queued_messages(environment)]
    assert ["PARTSTAT=DECLINED" in texts[0], "PARTSTAT=ACCEPTED" in texts[2]] == [True, True]
    assert "METHOD:DECLINECOUNTER" in texts[3]


async def test_of_two_requests_for_the_last_place_one_succeeds(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    for day in range(10, 15):
        invitations = [meeting(room, hours(day), uid=f"{day}-{number}") for number in range(4)]
        results = await asyncio.gather(*(book(environment, item) for item in invitations))
        assert sorted(results) == ["ACCEPTED", BUSY, BUSY, BUSY]
    assert len(await list_busy_times(root, room)) == 5


async def test_simultaneous_series_are_booked_whole_or_not_at_all(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    later = DAILY.replace("20300110", "20300112")
    results = await asyncio.gather(
        book(environment, meeting(room, DAILY, uid="a")),
        book(environment, meeting(room, later, uid="b")),
    )
    assert sorted(results) == ["ACCEPTED", SERIES_BUSY]
    assert len(await list_busy_times(root, room)) == 3


async def test_endless_series_is_booked_for_five_years_or_1000_times(
    environment: Environment, room: str
) -> None:
    weekly = "DTSTART:20300110T100000Z\nDTEND:20300110T110000Z\nRRULE:FREQ=WEEKLY"
    assert await book(environment, meeting(room, weekly)) == "ACCEPTED"
    (reply,) = await load_queued_messages(environment)
    assert b"The resource is booked until 2034-12-28." in reply.replace(b"=\r\n", b"")
    counts = await select_rows(environment, "SELECT count(*) FROM bookings WHERE state = 'BOOKED'")
    assert counts == [(260,)]
    daily = weekly.replace("WEEKLY", "DAILY").replace("T10", "T15").replace("T11", "T16")
    assert await book(environment, meeting(room, daily, uid="daily")) == "ACCEPTED"
    counts = await select_rows(environment, "SELECT count(*) FROM bookings WHERE state = 'BOOKED'")
    assert counts == [(1260,)]


async def test_rows_without_booking_do_not_fill_a_resource(
    environment: Environment, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookings, "MAX_RELEASED_OF_ORGANIZER", 3)
    monkeypatch.setattr(bookings, "MAX_BOOKINGS", 4)
    far = "RECURRENCE-ID:21991231T100000Z\n" + hours(10)
    for number in range(5):
        event = cancellation(meeting(room, far, uid=f"far {number}"))
        assert await book(environment, event) == "RELEASED"
    statement = "SELECT count(*), max(ends_at) < '2035-01-01' FROM bookings"
    assert await select_rows(environment, statement) == [(3, True)]
    for number in range(4):
        event = meeting(room, hours(10 + number), uid=f"{number}")
        assert await book(environment, event) == "ACCEPTED"
    declined = await book(environment, meeting(room, hours(20), uid="full"))
    assert declined == f"DECLINED: {bookings.FULL_TEXT}"


async def test_bookings_are_deleted_400_days_after_their_end(
    environment: Environment, root: GraphQLClient, room: str, clock: ManualClock
) -> None:
    assert await book(environment, meeting(room)) == "ACCEPTED"
    clock.tick(days=409)
    assert (await housekeeping.run_housekeeping_round(environment)).bookings == 0
    assert len(await list_busy_times(root, room)) == 1
    clock.tick(days=1)
    assert (await housekeeping.run_housekeeping_round(environment)).bookings == 1
    assert await list_busy_times(root, room) == []


async def test_deleted_or_inactive_resource_books_nothing(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    update = """mutation ($input: ResourceUpdateInput!) {
      resourceUpdate(input: $input) { errors { code } } }"""
    refs: Any = [{"address": room}]
    await root(update, input={"resources": refs, "set": {"active": False}})
    with pytest.raises(Exception, match=ROOM):
        await book(environment, meeting(room))
