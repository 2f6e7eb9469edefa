"""How fast mail goes to one place, and what becomes of it while nobody answers there."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from mail.maintenance import housekeeping
from mail.maintenance.housekeeping import HousekeepingResult
from mail.mime.header_encoding import NamedAddress
from mail.outbound import destination_pacing
from mail.queue import bulk_updates as many
from models.runtime.environment import Environment
from models.submission.tables import SubmissionState
from tests.conftest import Client, Clock
from tests.support.mail_servers.misbehaving_smtp_server import QUICK, Bad
from tests.support.mail_servers.queue_worker import (
    State,
    deliveries,
    inbox,
    is_now,
    ring,
    send,
    state,
    until,
    working,
)

CAROL = NamedAddress("carol@example.net")


@pytest.fixture
def long_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is down is left alone for longer than a test lasts."""
    monkeypatch.setattr(destination_pacing, "FIRST_PAUSE", 250.0)


async def put_off(world: Environment, key: int) -> Any:
    """The delivery to carol, once nobody holds it and it waits for another time."""
    await until(lambda: is_now(world, key, "carol", State.DEFERRED))
    return (await deliveries(world, key))["carol"]


async def test_who_is_down_is_left_alone_for_a_while(
    ada: Client, world: Environment, clock: Clock
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route, working(world, route, QUICK):
        keys = [await send(ada, CAROL) for _ in range(5)]
        rows = [await put_off(world, key) for key in keys]
        tried = [row for row in rows if row.attempts]
        assert 1 <= len(tried) == there.connections < 5
        assert {(row.attempts, row.last_response) for row in tried} == {(1, "4.3.2 Later")}
        there.times = 0
        async with asyncio.timeout(60):
            for key in keys:
                while not await is_now(world, key, "carol", State.RELAYED):
                    await asyncio.sleep(0.5)  # pauses of places are not those of the test's clock
                    clock.tick(minutes=5)
                    ring(world)


@pytest.mark.usefixtures("long_down")
async def test_what_is_not_tried_is_no_attempt_and_is_put_off_for_longer_the_older_it_is(
    ada: Client, world: Environment, clock: Clock
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route, working(world, route, QUICK):
        await put_off(world, await send(ada, CAROL))
        assert there.connections == 1
        key = await send(ada, CAROL)
        row = await put_off(world, key)
        assert (row.attempts, row.last_code, row.last_response, row.mx) == (0, None, None, None)
        assert row.turn_at is None
        assert 200 < (row.next_at - clock()).total_seconds() <= destination_pacing.FIRST_PAUSE
        assert await state(world, key) is SubmissionState.SENDING

        clock.tick(hours=2)
        ring(world)
        until_ = clock() + timedelta(minutes=30)
        await until(lambda: waits_till(world, key, until_))
        row = (await deliveries(world, key))["carol"]
        assert (row.attempts, row.last_response) == (0, None)
    assert there.connections == 1


async def waits_till(world: Environment, key: int, at: datetime) -> bool:
    row = (await deliveries(world, key))["carol"]
    return bool(row.next_at == at and row.lease is None)


@pytest.mark.usefixtures("long_down")
async def test_what_was_said_last_stands_while_a_place_is_down(
    ada: Client, world: Environment, clock: Clock
) -> None:
    there, options = (
        Bad("RCPT", "450 4.2.1 Not now"),
        replace(world.options, send_connections_kept=0),
    )
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        key = await send(ada, CAROL)
        before = await put_off(world, key)
        there.step, there.what = "GREETING", "421 4.3.2 Later"
        await put_off(world, await send(ada, CAROL))
        clock.tick(minutes=20)
        ring(world)
        await until(lambda: moved(world, key, before.next_at))
        row = (await deliveries(world, key))["carol"]
    assert (row.attempts, row.last_response) == (1, "4.2.1 Not now")
    assert there.connections == 2


async def moved(world: Environment, key: int, at: datetime) -> bool:
    row = (await deliveries(world, key))["carol"]
    return bool(row.next_at and row.next_at != at and row.lease is None)


@pytest.mark.usefixtures("long_down")
@pytest.mark.parametrize("what", ["delay", "end"])
async def test_delay_and_end_come_in_their_time_though_nobody_is_asked(
    ada: Client, world: Environment, clock: Clock, what: str
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route:
        first = await send(ada, CAROL)
        async with working(world, route, QUICK):
            await put_off(world, first)
            key = await send(ada, CAROL)
            await put_off(world, key)
            clock.tick(**({"hours": 4.5} if what == "delay" else {"days": 5}))
            ring(world)
            await until(lambda: reported(ada, 2))
    row = (await deliveries(world, key))["carol"]
    (letter, _) = await inbox(ada)
    assert (row.attempts, there.connections) == (0, 1)
    if what == "delay":
        assert (letter.subject, row.state) == ("Your message is delayed", State.DEFERRED)
        assert row.last_response is None
        assert row.delay_told_at == clock()
    else:
        assert letter.subject == "Your message could not be delivered"
        assert (row.state, row.last_response) == (State.EXPIRED, "4.3.2 Later")


async def reported(ada: Client, many: int) -> bool:
    return len(await inbox(ada)) >= many


async def test_a_place_gets_so_many_in_a_minute(
    ada: Client, world: Environment, clock: Clock
) -> None:
    options = replace(world.options, send_per_minute=6)
    there = Bad()
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        keys = [await send(ada, CAROL) for _ in range(4)]
        await until(lambda: rest(world, keys, clock(), over=1))
        waiting = [row for key in keys if (row := (await deliveries(world, key))["carol"]).next_at]
        assert [row.attempts for row in waiting] == [0, 0, 0]
        waits = sorted((row.next_at - clock()).total_seconds() for row in waiting)
        assert [round(wait / 10) for wait in waits] == [1, 2, 3]
    assert there.taken == 1


async def test_all_processes_share_the_turns_of_a_place(
    ada: Client, world: Environment, clock: Clock
) -> None:
    options = replace(world.options, send_per_minute=6)
    one, other = (replace(world, options=options) for _ in range(2))
    there = Bad()
    async with there.listening() as route, working(one, route, QUICK), working(other, route, QUICK):
        keys = [await send(ada, CAROL) for _ in range(6)]
        await until(lambda: rest(world, keys, clock(), over=1))
        rows = [(await deliveries(world, key))["carol"] for key in keys]
    waits = sorted((row.next_at - clock()).total_seconds() for row in rows if row.next_at)
    assert [round(wait / 10) for wait in waits] == [1, 2, 3, 4, 5]
    assert there.taken == 1


async def rest(world: Environment, keys: list[int], now: datetime, *, over: int) -> bool:
    """Whether so many of these have been taken, and all others put off."""
    rows = [(await deliveries(world, key))["carol"] for key in keys]
    late = [row.next_at is not None and row.next_at > now for row in rows]
    taken = [row.state is State.RELAYED for row in rows]
    free = all(row.lease is None for row in rows)
    return free and sum(taken) == over and sum(late) == len(keys) - over


async def test_turns_are_given_one_after_another_and_forgotten(
    world: Environment, clock: Clock
) -> None:
    assert [await destination_pacing.reserve_slot(world, "there", 60) for _ in range(4)] == [
        0,
        1,
        2,
        3,
    ]
    clock.tick(seconds=1)
    assert (
        await destination_pacing.reserve_slot(world, "there", 60) == 1
    )  # those that were put off come again
    assert await destination_pacing.reserve_slot(world, "elsewhere", 60) == 0
    assert await housekeeping.run_round(world) == HousekeepingResult()
    clock.tick(seconds=10)
    assert (await housekeeping.run_round(world)).turns == 2
    assert await destination_pacing.reserve_slot(world, "there", 60) == 0


@pytest.mark.usefixtures("long_down")
async def test_what_is_hurried_is_tried_once_for_all_where_a_place_is_down(
    ada: Client, world: Environment, clock: Clock
) -> None:
    there = Bad("GREETING", "421 4.3.2 Later")
    async with there.listening() as route, working(world, route, QUICK):
        keys = [await send(ada, CAROL)]
        await put_off(world, keys[0])
        keys += [await send(ada, CAROL) for _ in range(2)]
        await until(lambda: rest(world, keys, clock(), over=0))
        assert there.connections == 1
        clock.tick(seconds=1)
        await hurried(ada, keys)
        await until(lambda: rest(world, keys, clock(), over=0))
        assert there.connections == 2
        rows = [(await deliveries(world, key))["carol"] for key in keys]
        assert sorted(row.attempts for row in rows) in ([0, 0, 2], [0, 1, 1])
        assert {row.hurried_at for row in rows} == {None}

        there.step = ""
        clock.tick(seconds=1)
        await hurried(ada, keys)
        await until(lambda: rest(world, keys, clock(), over=3))
    assert there.taken == 3


async def hurried(ada: Client, keys: list[int]) -> None:
    async with ada.world.write_session(ada.user.id) as session:
        await ada.world.run_in_session(session, lambda turn: many.flush_deferred(turn, keys))
