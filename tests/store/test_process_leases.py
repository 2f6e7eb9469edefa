"""Leases end when the heartbeat of their process stops, and not because of a clock."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlmodel import SQLModel, col

from mail.envelope.delivery_jobs import DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates, recipient_leases, removal
from mail.queue.delivery_results import record_results_and_report
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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    is_entry_in_state,
    load_queue_entries,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.stores.other_processes import (
    DEAD_AFTER_SECONDS,
    make_other_process,
    wait_until_unregistered,
)
from tests.support.stores.sample_rows import sample_row

CLOCK_STEPS = [timedelta(hours=1), timedelta(hours=-1), timedelta(minutes=5), timedelta(days=400)]


def delivery_ids(claimed: recipient_leases.ClaimedJobs) -> set[int]:
    return {recipient.delivery_id for job in claimed.jobs for recipient in job.recipients}


async def claim_delivery_ids(process: Environment) -> set[int]:
    """Claim all due jobs for a process, and return the ids of their recipients."""
    return delivery_ids(
        await recipient_leases.release_held_and_claim_due_jobs(process, WORKER_LIMITS)
    )


@asynccontextmanager
async def observe_processes(environment: Environment) -> AsyncGenerator[None]:
    """Register a process that looks for dead processes."""
    async with leases.keep_process_registered(environment):
        yield


def test_every_table_with_a_lease_is_a_leased_table() -> None:
    tables_with_lease = {
        table.name
        for table in SQLModel.metadata.tables.values()
        if {"lease", "holder"} & set(table.c.keys())
    }
    leased_tables = {core_table(table).name for table in leases.LEASED_TABLES}
    # a listener is valid only while its process is registered
    assert tables_with_lease - {"compose_listeners"} == leased_tables
    clock_columns = {
        (table.name, name)
        for table in SQLModel.metadata.tables.values()
        for name in list(table.c.keys())
        if name.startswith("lease") and name != "lease"
    }
    assert clock_columns == set()


@dataclass(frozen=True)
class SteppedPair:
    """Two processes whose clock is set by a step. The first one leases the recipients of a job."""

    clock: ManualClock
    step: timedelta
    processes: tuple[Environment, Environment]
    submission_id: int
    claimed: recipient_leases.ClaimedJobs

    async def assert_nothing_can_be_claimed(self) -> None:
        for process in self.processes:
            assert await claim_delivery_ids(process) == set()


async def start_stepped_pair(
    ada: GraphQLClient, environment: Environment, step: timedelta, stack: AsyncExitStack
) -> SteppedPair:
    """Start both processes, and let the first one lease the recipients of a new submission."""
    clock = ManualClock()
    base = replace(environment, now=clock)
    first, second = make_other_process(base, name="one"), make_other_process(base, ahead=step)
    for process in (first, second):
        await stack.enter_async_context(observe_processes(process))
    submission_id = await queue_message(ada)
    claimed = await recipient_leases.release_held_and_claim_due_jobs(first, WORKER_LIMITS)
    assert len(delivery_ids(claimed)) == 2
    stack.enter_context(leases.protect_leases_in_use(first, *delivery_ids(claimed)))
    assert await claim_delivery_ids(second) == set()
    return SteppedPair(clock, step, (first, second), submission_id, claimed)


async def test_clock_step_does_not_end_a_lease(
    ada: GraphQLClient, environment: Environment
) -> None:
    """Each step is tested with its own pair of processes."""
    async with AsyncExitStack() as stack:
        pairs = [await start_stepped_pair(ada, environment, step, stack) for step in CLOCK_STEPS]
        for pair in pairs:
            pair.clock.time += pair.step
            await pair.assert_nothing_can_be_claimed()
            for process in pair.processes:
                submission_ids = [pair.submission_id]
                assert await removal.bounce_unleased_queue_entries(process, submission_ids) == 0
        await asyncio.sleep(1.5 * DEAD_AFTER_SECONDS)  # all processes still send heartbeats
        for pair in pairs:
            await pair.assert_nothing_can_be_claimed()
            (job,) = pair.claimed.jobs
            assert await recipient_leases.mark_final_dot_if_leased(
                pair.processes[0], job, sorted(delivery_ids(pair.claimed))
            )


@pytest.mark.parametrize("step", CLOCK_STEPS)
async def test_leases_of_a_dead_process_are_taken_over_with_any_clock(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, step: timedelta
) -> None:
    dead = make_other_process(environment, ahead=step, name="dead")
    successor = make_other_process(environment)
    clock.time += step
    submission_id = await queue_message(ada)
    clock.time -= step
    async with observe_processes(successor):
        await leases.ensure_process_registered(dead)  # without a heartbeat
        claimed_ids = await claim_delivery_ids(dead) or await claim_delivery_ids(successor)
        assert len(claimed_ids) == 2
        await wait_until_unregistered(environment, "dead")
        async with (
            run_smtp_server(FakeSmtpServer()) as smtp_server,
            run_queue_worker(successor, relay_settings(smtp_server)),
        ):
            await poll_until(
                lambda: is_entry_in_state(environment, submission_id, "carol", State.RELAYED)
            )
            await poll_until(
                lambda: is_entry_in_state(environment, submission_id, "dave", State.RELAYED)
            )
    assert len(smtp_server.messages) == 1


async def test_flush_makes_entries_of_a_dead_process_due(
    ada: GraphQLClient, environment: Environment
) -> None:
    dead, successor = make_other_process(environment, name="dead"), make_other_process(environment)
    submission_id = await queue_message(ada)
    claimed = await recipient_leases.release_held_and_claim_due_jobs(dead, WORKER_LIMITS)
    deferred = DeliveryResult(State.DEFERRED, 451, "Later")
    await record_results_and_report(
        dead, claimed.jobs[0], dict.fromkeys(delivery_ids(claimed), deferred), b""
    )
    async with (
        environment.write_session() as session
    ):  # it is leased for the retry, and then the process dies
        await (await session.connection()).execute(
            update(QueueEntry).values(ready_at=environment.now())
        )
    assert len(await claim_delivery_ids(dead)) == 2
    async with observe_processes(successor):
        await wait_until_unregistered(environment, "dead")
        await environment.run_transaction(
            lambda transaction: bulk_updates.flush_deferred_entries(transaction, [submission_id]),
            ada.user.id,
        )
        assert len(await claim_delivery_ids(successor)) == 2


async def test_deregistered_process_claims_and_writes_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    slow, successor = make_other_process(environment, name="slow"), make_other_process(environment)
    await queue_message(ada)
    claimed = await recipient_leases.release_held_and_claim_due_jobs(slow, WORKER_LIMITS)
    async with observe_processes(successor):
        await wait_until_unregistered(environment, "slow")
    assert await claim_delivery_ids(slow) == set()  # it does not know yet
    (job,) = claimed.jobs
    assert not await recipient_leases.mark_final_dot_if_leased(
        slow, job, sorted(delivery_ids(claimed))
    )
    claimed_again = await recipient_leases.release_held_and_claim_due_jobs(
        make_other_process(environment), WORKER_LIMITS
    )
    relayed = DeliveryResult(State.RELAYED, 250, "OK")
    await record_results_and_report(slow, job, dict.fromkeys(delivery_ids(claimed), relayed), b"")
    rows = await load_queue_entries(environment, job.submission_id)
    assert {(row.state, row.lease) for row in rows.values()} == {
        (State.PENDING, claimed_again.jobs[0].lease)
    }


async def test_deregistered_process_leases_its_recipients_again(
    ada: GraphQLClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    """Other processes can't send to these recipients again."""
    slow = make_other_process(environment, name="slow")
    async with run_smtp_server(FakeSmtpServer(data_gate=asyncio.Event())) as smtp_server:
        assert smtp_server.data_gate is not None
        async with run_queue_worker(slow, relay_settings(smtp_server)):
            submission_id = await queue_message(ada)

            async def is_final_dot_sent() -> bool:
                return smtp_server.data_count == 1

            await poll_until(is_final_dot_sent)
            await leases.delete_server_registrations_and_free_leases(
                environment, slow.process.server_id
            )

            async def is_loss_logged() -> bool:  # at the next heartbeat
                return "This process lost its leases" in caplog.text

            await poll_until(is_loss_logged)

            async def are_leased_again() -> bool:
                rows = await load_queue_entries(environment, submission_id)
                return all(row.holder is not None for row in rows.values())

            await poll_until(are_leased_again)
            assert await claim_delivery_ids(make_other_process(environment)) == set()
            smtp_server.data_gate.set()
            await poll_until(
                lambda: is_entry_in_state(environment, submission_id, "carol", State.RELAYED)
            )
    assert len(smtp_server.messages) == 1


async def test_restarted_process_gets_its_leases_at_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    before, after = make_other_process(environment), make_other_process(environment)
    after.process.server_id = before.process.server_id
    await queue_message(ada)
    assert len(await claim_delivery_ids(before)) == 2
    assert len(await claim_delivery_ids(after)) == 2


async def test_stopped_process_frees_its_leases_at_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    stopping = make_other_process(environment, name="stopping")
    successor = make_other_process(environment)
    await queue_message(ada)
    async with leases.keep_process_registered(stopping):
        assert len(await claim_delivery_ids(stopping)) == 2
    assert len(await claim_delivery_ids(successor)) == 2


async def test_later_heartbeat_ends_a_lease_that_could_not_be_ended(
    ada: GraphQLClient, environment: Environment
) -> None:
    process = make_other_process(environment, name="one")
    await queue_message(ada, NamedAddress("carol@example.net"))
    async with leases.keep_process_registered(process):
        (job,) = (
            await recipient_leases.release_held_and_claim_due_jobs(process, WORKER_LIMITS)
        ).jobs
        has_lease = col(QueueEntry.lease) == job.lease
        leases.end_lease_at_later_heartbeat(process, QueueEntry, has_lease, delay_seconds=0.1)
        assert await claim_delivery_ids(process) == set()

        async def is_free() -> bool:
            rows = await load_queue_entries(environment, job.submission_id)
            return all(row.holder is None for row in rows.values())

        await poll_until(is_free)
        assert len(await claim_delivery_ids(process)) == 1


async def test_lease_of_every_table_ends_with_its_process(environment: Environment) -> None:
    """The lease columns of sample rows are set without foreign key checks."""
    dead, observer = make_other_process(environment, name="dead"), make_other_process(environment)
    process_id = await leases.ensure_process_registered(dead)
    for case in each_case(leases.LEASED_TABLES):
        with case as table:
            row = sample_row(table) | {"holder": process_id}
            if "lease" in core_table(table).c:
                row["lease"] = 5
            async with environment.database.engine.begin() as connection:
                if environment.database.dialect == "sqlite":
                    await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
                else:
                    await connection.exec_driver_sql("SET session_replication_role = replica")
                await connection.execute(insert(core_table(table)), row)
                holders = await load_holders(connection, table)
                assert holders == [process_id]
                await connection.run_sync(
                    lambda sync: leases.free_orphaned_leases(make_transaction(sync, observer))
                )
                # the process is registered
                assert await load_holders(connection, table) == [process_id]
                await connection.execute(core_table(ServerProcess).delete())
                await connection.run_sync(
                    lambda sync: leases.free_orphaned_leases(make_transaction(sync, observer))
                )
                assert await load_holders(connection, table) == [None]
                await connection.rollback()


def make_transaction(connection: Any, environment: Environment) -> Any:
    return DatabaseTransaction(connection, environment)


async def load_holders(connection: Any, table: Any) -> list[Any]:
    return list((await connection.execute(select(core_table(table).c.holder))).scalars())


def test_pause_of_the_observer_marks_no_process_dead() -> None:
    """After an outage of the database the counters are unchanged although all processes live."""
    observer = HeartbeatObserver(interval_seconds=0.02, dead_after_seconds=0.06)
    heartbeat = Heartbeat(1, 5, "far", 0)
    assert observer.note_heartbeats_and_find_dead([heartbeat], is_one_machine=False) == []
    time.sleep(0.2)
    assert observer.note_heartbeats_and_find_dead([heartbeat], is_one_machine=False) == []
    time.sleep(0.2)
    next_heartbeat = Heartbeat(1, 6, "far", 0)
    assert observer.note_heartbeats_and_find_dead([next_heartbeat], is_one_machine=False) == []
    look_count = 0
    while not (
        dead := observer.note_heartbeats_and_find_dead([next_heartbeat], is_one_machine=False)
    ):
        look_count += 1
        time.sleep(0.03)
    assert dead == [next_heartbeat]
    assert look_count >= 3


def test_other_boot_or_old_heartbeat_on_one_machine_is_dead() -> None:
    this_boot = boot_id()
    recent = Heartbeat(1, 5, this_boot, milliseconds_since_boot() - 14_000)
    old = Heartbeat(2, 5, this_boot, milliseconds_since_boot() - 16_000)
    rebooted = Heartbeat(3, 5, "another boot", milliseconds_since_boot())
    heartbeats = [recent, old, rebooted]
    assert HeartbeatObserver().note_heartbeats_and_find_dead(heartbeats, is_one_machine=True) == [
        old,
        rebooted,
    ]


def test_resume_from_suspend_marks_no_process_dead() -> None:
    this_boot = boot_id()
    observer = HeartbeatObserver(interval_seconds=0.02, dead_after_seconds=15.0)
    assert (
        observer.note_heartbeats_and_find_dead(
            [Heartbeat(1, 5, this_boot, milliseconds_since_boot())], is_one_machine=True
        )
        == []
    )
    old = Heartbeat(1, 5, this_boot, milliseconds_since_boot() - 3_600_000)
    time.sleep(0.03)
    assert observer.note_heartbeats_and_find_dead([old], is_one_machine=True) == []
    time.sleep(0.03)
    assert observer.note_heartbeats_and_find_dead([old], is_one_machine=True) == [old]
