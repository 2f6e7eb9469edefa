"""Destination pacing: delivery slots, and pauses of destinations that fail."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from mail.maintenance import housekeeping
from mail.maintenance.housekeeping import HousekeepingResult
from mail.mime.header_encoding import NamedAddress
from mail.outbound import destination_pacing
from mail.queue import bulk_updates
from models.runtime.environment import Environment
from models.submission.tables import SubmissionState
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail_servers.misbehaving_smtp_server import MisbehavingSmtpServer
from tests.support.mail_servers.queue_worker import (
    State,
    is_entry_in_state,
    load_inbox_rows,
    load_queue_entries,
    load_submission_state,
    poll_until,
    queue_message,
    run_queue_worker,
    wake_queue_worker,
)
from tests.support.time_limits import HANG_SECONDS

CAROL = NamedAddress("carol@example.net")


@pytest.fixture
def long_destination_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause a failing destination for longer than the test lasts."""
    monkeypatch.setattr(destination_pacing, "FIRST_PAUSE", 250.0)


async def wait_until_deferred(environment: Environment, key: int) -> Any:
    """Wait until the queue entry of carol is deferred and without lease, and return it."""
    await poll_until(lambda: is_entry_in_state(environment, key, "carol", State.DEFERRED))
    return (await load_queue_entries(environment, key))["carol"]


async def test_failing_destination_is_paused(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = MisbehavingSmtpServer("GREETING", "421 4.3.2 Later")
    async with server.run_server() as route, run_queue_worker(environment, route):
        keys = [await queue_message(ada, CAROL) for _ in range(5)]
        rows = [await wait_until_deferred(environment, key) for key in keys]
        attempted = [row for row in rows if row.attempts]
        assert 1 <= len(attempted) == server.connection_count < 5
        assert {(row.attempts, row.last_response) for row in attempted} == {(1, "4.3.2 Later")}
        server.fault_count = 0
        async with asyncio.timeout(HANG_SECONDS):
            for key in keys:
                while not await is_entry_in_state(environment, key, "carol", State.RELAYED):
                    # Pauses of destinations don't follow the clock of the test.
                    await asyncio.sleep(0.5)
                    clock.tick(minutes=5)
                    wake_queue_worker(environment)


@pytest.mark.usefixtures("long_destination_pause")
async def test_paused_entry_counts_no_attempt_and_waits_longer_with_age(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = MisbehavingSmtpServer("GREETING", "421 4.3.2 Later")
    async with server.run_server() as route, run_queue_worker(environment, route):
        await wait_until_deferred(environment, await queue_message(ada, CAROL))
        assert server.connection_count == 1
        key = await queue_message(ada, CAROL)
        row = await wait_until_deferred(environment, key)
        assert (row.attempts, row.last_code, row.last_response, row.mx) == (0, None, None, None)
        assert row.ready_at is None
        assert 200 < (row.next_at - clock()).total_seconds() <= destination_pacing.FIRST_PAUSE
        assert await load_submission_state(environment, key) is SubmissionState.SENDING

        clock.tick(hours=2)
        wake_queue_worker(environment)
        expected_time = clock() + timedelta(minutes=30)
        await poll_until(lambda: is_deferred_until(environment, key, expected_time))
        row = (await load_queue_entries(environment, key))["carol"]
        assert (row.attempts, row.last_response) == (0, None)
    assert server.connection_count == 1


async def is_deferred_until(environment: Environment, key: int, next_at: datetime) -> bool:
    row = (await load_queue_entries(environment, key))["carol"]
    return bool(row.next_at == next_at and row.lease is None)


@pytest.mark.usefixtures("long_destination_pause")
async def test_pause_keeps_last_response_of_entry(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = MisbehavingSmtpServer("RCPT", "450 4.2.1 Not now")
    options = replace(environment.options, outbound_idle_connections=0)
    async with (
        server.run_server() as route,
        run_queue_worker(replace(environment, options=options), route),
    ):
        key = await queue_message(ada, CAROL)
        row_before = await wait_until_deferred(environment, key)
        server.step, server.fault = "GREETING", "421 4.3.2 Later"
        await wait_until_deferred(environment, await queue_message(ada, CAROL))
        clock.tick(minutes=20)
        wake_queue_worker(environment)
        await poll_until(lambda: is_rescheduled(environment, key, row_before.next_at))
        row = (await load_queue_entries(environment, key))["carol"]
    assert (row.attempts, row.last_response) == (1, "4.2.1 Not now")
    assert server.connection_count == 2


async def is_rescheduled(environment: Environment, key: int, old_next_at: datetime) -> bool:
    row = (await load_queue_entries(environment, key))["carol"]
    return bool(row.next_at and row.next_at != old_next_at and row.lease is None)


@pytest.mark.usefixtures("long_destination_pause")
@pytest.mark.parametrize("report_kind", ["delay", "end"])
async def test_delay_notice_and_expiry_are_on_time_during_pause(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, report_kind: str
) -> None:
    server = MisbehavingSmtpServer("GREETING", "421 4.3.2 Later")
    async with server.run_server() as route:
        first_key = await queue_message(ada, CAROL)
        async with run_queue_worker(environment, route):
            await wait_until_deferred(environment, first_key)
            key = await queue_message(ada, CAROL)
            await wait_until_deferred(environment, key)
            clock.tick(**({"hours": 4.5} if report_kind == "delay" else {"days": 5}))
            wake_queue_worker(environment)
            await poll_until(lambda: has_inbox_messages(ada, 2))
    row = (await load_queue_entries(environment, key))["carol"]
    (dsn, _) = await load_inbox_rows(ada)
    assert (row.attempts, server.connection_count) == (0, 1)
    if report_kind == "delay":
        assert (dsn.subject, row.state) == ("Your message is delayed", State.DEFERRED)
        assert row.last_response is None
        assert row.delay_reported_at == clock()
    else:
        assert dsn.subject == "Your message could not be delivered"
        assert (row.state, row.last_response) == (State.EXPIRED, "4.3.2 Later")


async def has_inbox_messages(ada: GraphQLClient, count: int) -> bool:
    return len(await load_inbox_rows(ada)) >= count


async def test_destination_gets_limited_messages_per_minute(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    options = replace(environment.options, outbound_messages_per_minute_per_domain=6)
    server = MisbehavingSmtpServer()
    async with (
        server.run_server() as route,
        run_queue_worker(replace(environment, options=options), route),
    ):
        keys = [await queue_message(ada, CAROL) for _ in range(4)]
        await poll_until(lambda: are_sent_or_deferred(environment, keys, clock(), sent_count=1))
        waiting = [
            row
            for key in keys
            if (row := (await load_queue_entries(environment, key))["carol"]).next_at
        ]
        assert [row.attempts for row in waiting] == [0, 0, 0]
        waits = sorted((row.next_at - clock()).total_seconds() for row in waiting)
        assert [round(wait / 10) for wait in waits] == [1, 2, 3]
    assert server.accepted_message_count == 1


async def test_processes_share_delivery_slots_of_destination(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    options = replace(environment.options, outbound_messages_per_minute_per_domain=6)
    first_process, second_process = (replace(environment, options=options) for _ in range(2))
    server = MisbehavingSmtpServer()
    async with (
        server.run_server() as route,
        run_queue_worker(first_process, route),
        run_queue_worker(second_process, route),
    ):
        keys = [await queue_message(ada, CAROL) for _ in range(6)]
        await poll_until(lambda: are_sent_or_deferred(environment, keys, clock(), sent_count=1))
        rows = [(await load_queue_entries(environment, key))["carol"] for key in keys]
    waits = sorted((row.next_at - clock()).total_seconds() for row in rows if row.next_at)
    assert [round(wait / 10) for wait in waits] == [1, 2, 3, 4, 5]
    assert server.accepted_message_count == 1


async def are_sent_or_deferred(
    environment: Environment, keys: list[int], now: datetime, *, sent_count: int
) -> bool:
    """True if `sent_count` messages are sent and all others are deferred and without lease."""
    rows = [(await load_queue_entries(environment, key))["carol"] for key in keys]
    deferred = [row.next_at is not None and row.next_at > now for row in rows]
    sent = [row.state is State.RELAYED for row in rows]
    has_no_lease = all(row.lease is None for row in rows)
    return has_no_lease and sum(sent) == sent_count and sum(deferred) == len(keys) - sent_count


async def test_delivery_slots_are_consecutive_and_deleted_later(
    environment: Environment, clock: ManualClock
) -> None:
    assert [
        await destination_pacing.reserve_slot_and_get_wait_seconds(environment, "there", 60)
        for _ in range(4)
    ] == [
        0,
        1,
        2,
        3,
    ]
    clock.tick(seconds=1)
    # Deferred entries come again.
    assert await destination_pacing.reserve_slot_and_get_wait_seconds(environment, "there", 60) == 1
    assert (
        await destination_pacing.reserve_slot_and_get_wait_seconds(environment, "elsewhere", 60)
        == 0
    )
    assert await housekeeping.run_housekeeping_round(environment) == HousekeepingResult()
    clock.tick(seconds=10)
    assert (await housekeeping.run_housekeeping_round(environment)).turns == 2
    assert await destination_pacing.reserve_slot_and_get_wait_seconds(environment, "there", 60) == 0


@pytest.mark.usefixtures("long_destination_pause")
async def test_flush_tries_paused_destination_once(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = MisbehavingSmtpServer("GREETING", "421 4.3.2 Later")
    async with server.run_server() as route, run_queue_worker(environment, route):
        keys = [await queue_message(ada, CAROL)]
        await wait_until_deferred(environment, keys[0])
        keys += [await queue_message(ada, CAROL) for _ in range(2)]
        await poll_until(lambda: are_sent_or_deferred(environment, keys, clock(), sent_count=0))
        assert server.connection_count == 1
        clock.tick(seconds=1)
        await flush_entries(ada, keys)
        await poll_until(lambda: are_sent_or_deferred(environment, keys, clock(), sent_count=0))
        assert server.connection_count == 2
        rows = [(await load_queue_entries(environment, key))["carol"] for key in keys]
        assert sorted(row.attempts for row in rows) in ([0, 0, 2], [0, 1, 1])
        assert {row.flushed_at for row in rows} == {None}

        server.step = ""
        clock.tick(seconds=1)
        await flush_entries(ada, keys)
        await poll_until(lambda: are_sent_or_deferred(environment, keys, clock(), sent_count=3))
    assert server.accepted_message_count == 3


async def flush_entries(ada: GraphQLClient, keys: list[int]) -> None:
    async with ada.environment.write_session(ada.user.id) as session:
        await ada.environment.run_in_session(
            session, lambda transaction: bulk_updates.flush_deferred_entries(transaction, keys)
        )
