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

from mail.envelope.delivery_jobs import DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates, recipient_leases, removal
from mail.queue.delivery_results import record_results
from models.queue.tables import QueueEntry
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.registration import (
    Heartbeat,
    HeartbeatObserver,
    boot_id,
    milliseconds_since_boot,
)
from models.runtime.server_processes import ServerProcess
from models.store.columns import core_table
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


def ids(claimed: recipient_leases.ClaimedJobs) -> set[int]:
    return {to.delivery_id for job in claimed.jobs for to in job.recipients}


async def registered(world: Environment) -> set[str]:
    rows = await world.database.read(select(col(ServerProcess.name)))
    return {row.name for row in rows}


@asynccontextmanager
async def looking(world: Environment) -> AsyncGenerator[None]:
    """A process that finds dead ones meanwhile."""
    async with leases.registered_process(world):
        yield


def test_every_table_with_a_lease_is_given_back_by_the_same_mechanism() -> None:
    held = {
        table.name
        for table in SQLModel.metadata.tables.values()
        if {"lease", "holder"} & set(table.c.keys())
    }
    known = {core_table(table).name for table in leases.LEASED_TABLES}
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
    ada: Client, world: Environment, clock: Clock, step: timedelta
) -> None:
    one, other = another_process(world, name="one"), another_process(world, ahead=step)
    key = await send(ada)
    async with looking(one), looking(other):
        held = await recipient_leases.claim_due_jobs(one, PACE)
        assert len(ids(held)) == 2
        with leases.use_leases(one, *ids(held)):
            assert ids(await recipient_leases.claim_due_jobs(other, PACE)) == set()
            clock.time += step
            for process in (one, other):
                assert ids(await recipient_leases.claim_due_jobs(process, PACE)) == set()
                assert await removal.bounce_submissions(process, [key]) == 0
            await asyncio.sleep(1.5 * DEAD_AFTER)  # both still send heartbeats
            for process in (one, other):
                assert ids(await recipient_leases.claim_due_jobs(process, PACE)) == set()
        (job,) = held.jobs
        assert await recipient_leases.mark_final_dot(one, job, sorted(ids(held)))


@pytest.mark.parametrize("step", STEPS)
async def test_a_dead_process_is_taken_over_whatever_its_clock_was(
    ada: Client, world: Environment, clock: Clock, step: timedelta
) -> None:
    dead, heir = another_process(world, ahead=step, name="dead"), another_process(world)
    clock.time += step
    key = await send(ada)
    clock.time -= step
    async with looking(heir):
        await leases.ensure_registered(dead)  # and no heartbeat follows
        held = ids(await recipient_leases.claim_due_jobs(dead, PACE)) or ids(
            await recipient_leases.claim_due_jobs(heir, PACE)
        )
        assert len(held) == 2
        await until(lambda: _alone(world, "dead"))
        async with listening(Server()) as there, working(heir, relay(there)):
            await until(lambda: is_now(world, key, "carol", State.RELAYED))
            await until(lambda: is_now(world, key, "dave", State.RELAYED))
    assert len(there.mails) == 1


async def _alone(world: Environment, dead: str) -> bool:
    return dead not in await registered(world)


async def test_a_flush_sends_at_once_what_a_dead_process_had(
    ada: Client, world: Environment
) -> None:
    dead, heir = another_process(world, name="dead"), another_process(world)
    key = await send(ada)
    first = await recipient_leases.claim_due_jobs(dead, PACE)
    later = DeliveryResult(State.DEFERRED, 451, "Later")
    await record_results(dead, first.jobs[0], dict.fromkeys(ids(first), later), b"")
    async with (
        world.write_session() as session
    ):  # it is tried again in a while, and the process dies
        await (await session.connection()).execute(update(QueueEntry).values(turn_at=world.now()))
    assert len(ids(await recipient_leases.claim_due_jobs(dead, PACE))) == 2
    async with looking(heir):
        await until(lambda: _alone(world, "dead"))
        await world.run_transaction(
            lambda turn: bulk_updates.flush_deferred(turn, [key]), ada.user.id
        )
        assert len(ids(await recipient_leases.claim_due_jobs(heir, PACE))) == 2


async def test_a_process_taken_for_dead_takes_nothing_and_writes_nothing(
    ada: Client, world: Environment
) -> None:
    slow, heir = another_process(world, name="slow"), another_process(world)
    await send(ada)
    held = await recipient_leases.claim_due_jobs(slow, PACE)
    async with looking(heir):
        await until(lambda: _alone(world, "slow"))
    assert ids(await recipient_leases.claim_due_jobs(slow, PACE)) == set()  # it does not know yet
    (job,) = held.jobs
    assert not await recipient_leases.mark_final_dot(slow, job, sorted(ids(held)))
    again = await recipient_leases.claim_due_jobs(another_process(world), PACE)
    late = DeliveryResult(State.RELAYED, 250, "OK")
    await record_results(slow, job, dict.fromkeys(ids(held), late), b"")
    rows = await deliveries(world, job.submission_id)
    assert {(row.state, row.lease) for row in rows.values()} == {
        (State.PENDING, again.jobs[0].lease)
    }


async def test_a_process_taken_for_dead_goes_on_with_what_nobody_took(
    ada: Client, world: Environment
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
            await leases.delete_server(world, slow.process.server_id)
            rows = await deliveries(world, key)
            assert {row.lease for row in rows.values()} <= {None}

            async def back() -> bool:
                rows = await deliveries(world, key)
                return all(row.holder is not None for row in rows.values())

            await until(back)
            assert ids(await recipient_leases.claim_due_jobs(another_process(world), PACE)) == set()
            there.gate.set()
            await until(lambda: is_now(world, key, "carol", State.RELAYED))
    assert len(there.mails) == 1


async def test_a_restarted_process_has_its_former_leases_at_once(
    ada: Client, world: Environment
) -> None:
    before, after = another_process(world), another_process(world)
    after.process.server_id = before.process.server_id
    await send(ada)
    assert len(ids(await recipient_leases.claim_due_jobs(before, PACE))) == 2
    assert len(ids(await recipient_leases.claim_due_jobs(after, PACE))) == 2


async def test_a_stopped_process_leaves_its_leases_at_once(ada: Client, world: Environment) -> None:
    stopping, heir = another_process(world, name="stopping"), another_process(world)
    await send(ada)
    async with leases.registered_process(stopping):
        assert len(ids(await recipient_leases.claim_due_jobs(stopping, PACE))) == 2
    assert len(ids(await recipient_leases.claim_due_jobs(heir, PACE))) == 2


async def test_what_could_not_be_written_is_given_back_by_a_later_heartbeat(
    ada: Client, world: Environment
) -> None:
    one = another_process(world, name="one")
    await send(ada, NamedAddress("carol@example.net"))
    async with leases.registered_process(one):
        (job,) = (await recipient_leases.claim_due_jobs(one, PACE)).jobs
        where = col(QueueEntry.lease) == job.lease
        leases.abandon_lease(one, QueueEntry, where, delay_seconds=0.1)
        assert ids(await recipient_leases.claim_due_jobs(one, PACE)) == set()

        async def free() -> bool:
            rows = await deliveries(world, job.submission_id)
            return all(row.holder is None for row in rows.values())

        await until(free)
        assert len(ids(await recipient_leases.claim_due_jobs(one, PACE))) == 1


@pytest.mark.parametrize("table", leases.LEASED_TABLES, ids=lambda table: table.__tablename__)
async def test_every_kind_of_lease_ends_with_its_process(world: Environment, table: Any) -> None:
    """The columns that a lease consists of are written to whatever rows there are."""
    dead, heir = another_process(world, name="dead"), another_process(world)
    key = await leases.ensure_registered(dead)
    row = sample_row(table) | {"holder": key}
    if "lease" in core_table(table).c:
        row["lease"] = 5
    async with world.database.engine.begin() as connection:
        if world.database.dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        else:
            await connection.exec_driver_sql("SET session_replication_role = replica")
        await connection.execute(insert(core_table(table)), row)
        now = await _holders(connection, table)
        assert now == [key]
        await connection.run_sync(lambda sync: leases.free_orphaned_leases(_turn(sync, heir)))
        assert await _holders(connection, table) == [key]  # it is registered
        await connection.execute(core_table(ServerProcess).delete())
        await connection.run_sync(lambda sync: leases.free_orphaned_leases(_turn(sync, heir)))
        assert await _holders(connection, table) == [None]
        await connection.rollback()


def _turn(connection: Any, world: Environment) -> Any:
    return DatabaseTransaction(connection, world)


async def _holders(connection: Any, table: Any) -> list[Any]:
    return list((await connection.execute(select(core_table(table).c.holder))).scalars())


def test_a_pause_of_the_observer_kills_nobody() -> None:
    """After an outage of the store each counter is as it was, though all processes live."""
    observer = HeartbeatObserver(interval_seconds=0.02, dead_after_seconds=0.06)
    beat = Heartbeat(1, 5, "far", 0)
    assert observer.find_dead([beat], is_one_machine=False) == []
    time.sleep(0.2)
    assert observer.find_dead([beat], is_one_machine=False) == []
    time.sleep(0.2)
    moved = Heartbeat(1, 6, "far", 0)
    assert observer.find_dead([moved], is_one_machine=False) == []
    looks = 0
    while not (dead := observer.find_dead([moved], is_one_machine=False)):
        looks += 1
        time.sleep(0.03)
    assert dead == [moved]
    assert looks >= 3


def test_on_one_machine_another_boot_or_an_old_heartbeat_is_death() -> None:
    here = boot_id()
    young = Heartbeat(1, 5, here, milliseconds_since_boot() - 14_000)
    old = Heartbeat(2, 5, here, milliseconds_since_boot() - 16_000)
    rebooted = Heartbeat(3, 5, "another boot", milliseconds_since_boot())
    every = [young, old, rebooted]
    assert HeartbeatObserver().find_dead(every, is_one_machine=True) == [old, rebooted]


def test_a_machine_that_wakes_up_kills_none_of_its_processes() -> None:
    here, observer = boot_id(), HeartbeatObserver(interval_seconds=0.02, dead_after_seconds=15.0)
    assert (
        observer.find_dead([Heartbeat(1, 5, here, milliseconds_since_boot())], is_one_machine=True)
        == []
    )
    asleep = Heartbeat(1, 5, here, milliseconds_since_boot() - 3_600_000)
    time.sleep(0.03)
    assert observer.find_dead([asleep], is_one_machine=True) == []
    time.sleep(0.03)
    assert observer.find_dead([asleep], is_one_machine=True) == [asleep]
