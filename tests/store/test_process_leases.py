"""Leases end when the heartbeat of their process stops, and never at a time of day."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlmodel import SQLModel, col

from mail.envelope.delivery_jobs import Result
from mail.mime.header_encoding import Named
from mail.queue import bulk_updates, recipient_leases, removal
from mail.queue.delivery_results import settle
from models.queue.tables import Delivery
from models.runtime import leases
from models.runtime.environment import Turn, World
from models.runtime.registration import Heartbeat, HeartbeatObserver, boot_id, boot_time
from models.runtime.server_processes import ServerProcess
from models.store.columns import table_of
from tests.conftest import Client, Clock
from tests.support.mail_servers.queue_worker import (
    PACE,
    State,
    deliveries,
    is_now,
    relay,
    send,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.stores.other_processes import DEAD_AFTER, another_process
from tests.support.stores.sample_rows import sample_row

STEPS = [timedelta(hours=1), timedelta(hours=-1), timedelta(minutes=5), timedelta(days=400)]


def ids(claimed: recipient_leases.Claimed) -> set[int]:
    return {to.delivery_id for job in claimed.jobs for to in job.recipients}


async def registered(world: World) -> set[str]:
    rows = await world.database.read(select(col(ServerProcess.name)))
    return {row.name for row in rows}


@asynccontextmanager
async def looking(world: World) -> AsyncGenerator[None]:
    """A process that finds dead ones meanwhile."""
    async with leases.registered(world):
        yield


def test_every_table_with_a_lease_is_given_back_by_the_same_mechanism() -> None:
    held = {
        table.name
        for table in SQLModel.metadata.tables.values()
        if {"lease", "holder"} & set(table.c.keys())
    }
    known = {table_of(table).name for table in leases.LEASED}
    assert held - {"compose_listeners"} == known  # a listener only counts while its process does
    by_clock = {
        (table.name, name)
        for table in SQLModel.metadata.tables.values()
        for name in list(table.c.keys())
        if name.startswith("lease") and name != "lease"
    }
    assert by_clock == set()


@pytest.mark.parametrize("step", STEPS)
async def test_no_step_of_the_clock_ends_a_lease(
    ada: Client, world: World, clock: Clock, step: timedelta
) -> None:
    one, other = another_process(world, name="one"), another_process(world, ahead=step)
    key = await send(ada)
    async with looking(one), looking(other):
        held = await recipient_leases.claim(one, PACE)
        assert len(ids(held)) == 2
        with leases.in_use(one, *ids(held)):
            assert ids(await recipient_leases.claim(other, PACE)) == set()
            clock.time += step
            for process in (one, other):
                assert ids(await recipient_leases.claim(process, PACE)) == set()
                assert await removal.give_back(process, [key]) == 0
            await asyncio.sleep(1.5 * DEAD_AFTER)  # both still send heartbeats
            for process in (one, other):
                assert ids(await recipient_leases.claim(process, PACE)) == set()
        (job,) = held.jobs
        assert await recipient_leases.still_held(one, job, sorted(ids(held)))


@pytest.mark.parametrize("step", STEPS)
async def test_a_dead_process_is_taken_over_whatever_its_clock_was(
    ada: Client, world: World, clock: Clock, step: timedelta
) -> None:
    dead, heir = another_process(world, ahead=step, name="dead"), another_process(world)
    clock.time += step
    key = await send(ada)
    clock.time -= step
    async with looking(heir):
        await leases.ensure_registered(dead)  # and no heartbeat follows
        held = ids(await recipient_leases.claim(dead, PACE)) or ids(
            await recipient_leases.claim(heir, PACE)
        )
        assert len(held) == 2
        await until(lambda: _alone(world, "dead"))
        async with listening(Server()) as there, working(heir, relay(there)):
            await until(lambda: is_now(world, key, "carol", State.RELAYED))
            await until(lambda: is_now(world, key, "dave", State.RELAYED))
    assert len(there.mails) == 1


async def _alone(world: World, dead: str) -> bool:
    return dead not in await registered(world)


async def test_a_flush_sends_at_once_what_a_dead_process_had(ada: Client, world: World) -> None:
    dead, heir = another_process(world, name="dead"), another_process(world)
    key = await send(ada)
    first = await recipient_leases.claim(dead, PACE)
    later = Result(State.DEFERRED, 451, "Later")
    await settle(dead, first.jobs[0], dict.fromkeys(ids(first), later), b"")
    async with world.write() as session:  # it is tried again in a while, and the process dies
        await (await session.connection()).execute(update(Delivery).values(turn_at=world.now()))
    assert len(ids(await recipient_leases.claim(dead, PACE))) == 2
    async with looking(heir):
        await until(lambda: _alone(world, "dead"))
        await world.apply(lambda turn: bulk_updates.hurry(turn, [key]), ada.user.id)
        assert len(ids(await recipient_leases.claim(heir, PACE))) == 2


async def test_a_process_taken_for_dead_takes_nothing_and_writes_nothing(
    ada: Client, world: World
) -> None:
    slow, heir = another_process(world, name="slow"), another_process(world)
    await send(ada)
    held = await recipient_leases.claim(slow, PACE)
    async with looking(heir):
        await until(lambda: _alone(world, "slow"))
    assert ids(await recipient_leases.claim(slow, PACE)) == set()  # it does not know yet
    (job,) = held.jobs
    assert not await recipient_leases.still_held(slow, job, sorted(ids(held)))
    again = await recipient_leases.claim(another_process(world), PACE)
    late = Result(State.RELAYED, 250, "OK")
    await settle(slow, job, dict.fromkeys(ids(held), late), b"")
    rows = await deliveries(world, job.submission_id)
    assert {(row.state, row.lease) for row in rows.values()} == {
        (State.PENDING, again.jobs[0].lease)
    }


async def test_a_process_taken_for_dead_goes_on_with_what_nobody_took(
    ada: Client, world: World
) -> None:
    """Its recipients are leased to it again, so that nobody sends them a second time."""
    slow = another_process(world, name="slow")
    async with listening(Server(gate=asyncio.Event())) as there:
        assert there.gate is not None
        async with working(slow, relay(there)):
            key = await send(ada)

            async def dotted() -> bool:
                return there.dots == 1

            await until(dotted)
            await leases.end_server(world, slow.process.server)
            rows = await deliveries(world, key)
            assert {row.lease for row in rows.values()} <= {None}

            async def back() -> bool:
                rows = await deliveries(world, key)
                return all(row.holder is not None for row in rows.values())

            await until(back)
            assert ids(await recipient_leases.claim(another_process(world), PACE)) == set()
            there.gate.set()
            await until(lambda: is_now(world, key, "carol", State.RELAYED))
    assert len(there.mails) == 1


async def test_a_restarted_process_has_its_former_leases_at_once(ada: Client, world: World) -> None:
    before, after = another_process(world), another_process(world)
    after.process.server = before.process.server
    await send(ada)
    assert len(ids(await recipient_leases.claim(before, PACE))) == 2
    assert len(ids(await recipient_leases.claim(after, PACE))) == 2


async def test_a_stopped_process_leaves_its_leases_at_once(ada: Client, world: World) -> None:
    stopping, heir = another_process(world, name="stopping"), another_process(world)
    await send(ada)
    async with leases.registered(stopping):
        assert len(ids(await recipient_leases.claim(stopping, PACE))) == 2
    assert len(ids(await recipient_leases.claim(heir, PACE))) == 2


async def test_what_could_not_be_written_is_given_back_by_a_later_heartbeat(
    ada: Client, world: World
) -> None:
    one = another_process(world, name="one")
    await send(ada, Named("carol@example.net"))
    async with leases.registered(one):
        (job,) = (await recipient_leases.claim(one, PACE)).jobs
        where = col(Delivery.lease) == job.lease
        leases.abandon(one, Delivery, where, after=0.1)
        assert ids(await recipient_leases.claim(one, PACE)) == set()

        async def free() -> bool:
            rows = await deliveries(world, job.submission_id)
            return all(row.holder is None for row in rows.values())

        await until(free)
        assert len(ids(await recipient_leases.claim(one, PACE))) == 1


@pytest.mark.parametrize("table", leases.LEASED, ids=lambda table: table.__tablename__)
async def test_every_kind_of_lease_ends_with_its_process(world: World, table: Any) -> None:
    """The columns that a lease consists of are written to whatever rows there are."""
    dead, heir = another_process(world, name="dead"), another_process(world)
    key = await leases.ensure_registered(dead)
    row = sample_row(table) | {"holder": key}
    if "lease" in table_of(table).c:
        row["lease"] = 5
    async with world.database.engine.begin() as connection:
        if world.database.dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        else:
            await connection.exec_driver_sql("SET session_replication_role = replica")
        await connection.execute(insert(table_of(table)), row)
        now = await _holders(connection, table)
        assert now == [key]
        await connection.run_sync(lambda sync: leases.free_orphans(_turn(sync, heir)))
        assert await _holders(connection, table) == [key]  # it is registered
        await connection.execute(table_of(ServerProcess).delete())
        await connection.run_sync(lambda sync: leases.free_orphans(_turn(sync, heir)))
        assert await _holders(connection, table) == [None]
        await connection.rollback()


def _turn(connection: Any, world: World) -> Any:
    return Turn(connection, world)


async def _holders(connection: Any, table: Any) -> list[Any]:
    return list((await connection.execute(select(table_of(table).c.holder))).scalars())


def test_a_pause_of_the_observer_kills_nobody() -> None:
    """After an outage of the store each counter is as it was, though all processes live."""
    observer = HeartbeatObserver(beat=0.02, dead_after=0.06)
    beat = Heartbeat(1, 5, "far", 0)
    assert observer.find_dead([beat], one_machine=False) == []
    time.sleep(0.2)
    assert observer.find_dead([beat], one_machine=False) == []
    time.sleep(0.2)
    moved = Heartbeat(1, 6, "far", 0)
    assert observer.find_dead([moved], one_machine=False) == []
    looks = 0
    while not (dead := observer.find_dead([moved], one_machine=False)):
        looks += 1
        time.sleep(0.03)
    assert dead == [moved]
    assert looks >= 3


def test_on_one_machine_another_boot_or_an_old_heartbeat_is_death() -> None:
    here = boot_id()
    young = Heartbeat(1, 5, here, boot_time() - 14_000)
    old = Heartbeat(2, 5, here, boot_time() - 16_000)
    rebooted = Heartbeat(3, 5, "another boot", boot_time())
    every = [young, old, rebooted]
    assert HeartbeatObserver().find_dead(every, one_machine=True) == [old, rebooted]


def test_a_machine_that_wakes_up_kills_none_of_its_processes() -> None:
    here, observer = boot_id(), HeartbeatObserver(beat=0.02, dead_after=15.0)
    assert observer.find_dead([Heartbeat(1, 5, here, boot_time())], one_machine=True) == []
    asleep = Heartbeat(1, 5, here, boot_time() - 3_600_000)
    time.sleep(0.03)
    assert observer.find_dead([asleep], one_machine=True) == []
    time.sleep(0.03)
    assert observer.find_dead([asleep], one_machine=True) == [asleep]
