"""Leases of queue entries after crashes, at stops and with several workers."""

import asyncio
import sqlite3
import threading
from dataclasses import replace

import pytest
from sqlalchemy import make_url, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryResult
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from mail.queue.delivery_results import record_results_and_report
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.queue.tables import QueueEntry
from models.runtime import leases
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.clients.change_followers import wait_for_followers
from tests.support.mail_servers.lmtp_client import wait_until
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    is_entry_in_state,
    load_queue_entries,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.stores.other_processes import (
    DEAD_AFTER_SECONDS,
    deregister_as_dead,
    free_leases_after_two_looks,
    make_other_process,
)
from tests.support.time_limits import HANG_SECONDS


async def test_new_submission_wakes_worker(ada: GraphQLClient, environment: Environment) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        await wait_for_followers(environment)  # the worker has found no entries
        key = await queue_message(ada)
        async with asyncio.timeout(HANG_SECONDS):
            await wait_until_tried(environment, key)


async def test_lease_of_dead_worker_is_claimed_again(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await queue_message(ada)
    first_claim = await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    (job,) = first_claim.jobs
    assert len(job.recipients) == 2
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs == []
    clock.tick(days=1)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs == []
    assert await recipient_leases.mark_final_dot_if_leased(
        environment, job, [recipient.delivery_id for recipient in job.recipients]
    )
    await deregister_as_dead(environment)
    assert not await recipient_leases.mark_final_dot_if_leased(
        environment, job, [recipient.delivery_id for recipient in job.recipients]
    )
    second_claim = await recipient_leases.release_held_and_claim_due_jobs(
        environment, WORKER_LIMITS
    )
    assert (len(second_claim.jobs), second_claim.uncertain_count) == (1, 2)

    # The first worker was not dead, only slow.
    late_result = DeliveryResult(State.RELAYED, 250, "OK")
    await record_results_and_report(
        environment, job, {recipient.delivery_id: late_result for recipient in job.recipients}, b""
    )
    rows = await load_queue_entries(environment, job.submission_id)
    assert {(row.state, row.lease) for row in rows.values()} == {
        (State.PENDING, second_claim.jobs[0].lease)
    }


async def test_stop_before_dot_releases_leases(
    ada: GraphQLClient, environment: Environment
) -> None:
    rcpt_received = asyncio.Event()

    async def ignore_rcpt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 there\r\n")
        while line := await reader.readline():
            if line.startswith(b"RCPT"):
                rcpt_received.set()
                continue  # no answer
            writer.write(b"250 OK\r\n")

    async with (
        run_scripted_server(ignore_rcpt) as port,
        run_queue_worker(environment, OutboundSettings(parse_next_hop(f"127.0.0.1:{port}"))),
    ):
        key = await queue_message(ada)
        await asyncio.wait_for(rcpt_received.wait(), HANG_SECONDS)
    for row in (await load_queue_entries(environment, key)).values():
        assert (row.state, row.lease, row.attempts) == (State.PENDING, None, 0)
        assert row.next_at == environment.now()


async def test_stop_waits_for_reply_after_dot(ada: GraphQLClient, environment: Environment) -> None:
    async with run_smtp_server(FakeSmtpServer(data_gate=asyncio.Event())) as server:
        assert server.data_gate is not None
        async with run_queue_worker(environment, relay_settings(server)) as stop:
            key = await queue_message(ada)

            async def has_received_dot() -> bool:
                return server.data_count == 1

            await poll_until(has_received_dot)
            stop.set()
            await asyncio.sleep(0.1)
            server.data_gate.set()
    rows = await load_queue_entries(environment, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert len(server.messages) == 1


async def test_leases_are_kept_during_slow_reply(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    other_process = make_other_process(environment, name="far")
    async with (
        run_smtp_server(FakeSmtpServer(data_gate=asyncio.Event())) as server,
        leases.keep_process_registered(other_process),
    ):
        assert server.data_gate is not None
        async with run_queue_worker(make_other_process(environment), relay_settings(server)):
            key = await queue_message(ada)
            for _ in range(2):  # the second look would find a process without heartbeats dead
                await asyncio.sleep(DEAD_AFTER_SECONDS)
                clock.tick(minutes=6)
                assert (
                    await recipient_leases.release_held_and_claim_due_jobs(
                        other_process, WORKER_LIMITS
                    )
                ).jobs == []
            server.data_gate.set()
            rows = await wait_until_tried(environment, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert server.data_count == 1


@pytest.mark.parametrize(("failing_point", "sent_before"), [("dot", 0), ("sent", 1)])
async def test_internal_error_near_dot_is_retried_and_marked(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    failing_point: str,
    sent_before: int,
) -> None:
    def fail_at_fault_point(fault_point: str) -> None:
        if fault_point == failing_point:
            raise OSError("broken")

    async with run_smtp_server(FakeSmtpServer()) as server:
        async with run_queue_worker(
            replace(environment, reach_fault_point=fail_at_fault_point), relay_settings(server)
        ):
            key = await queue_message(ada, NamedAddress("carol@example.net"))
            row = (await wait_until_tried(environment, key))["carol"]
        assert (row.state, len(server.messages)) == (State.DEFERRED, sent_before)
        assert (row.final_dot_at is not None) is bool(sent_before)
        clock.tick(minutes=2)
        async with run_queue_worker(environment, relay_settings(server)):
            await poll_until(lambda: is_entry_in_state(environment, key, "carol", State.RELAYED))
    assert len(server.messages) == sent_before + 1
    assert len({mail.raw for mail in server.messages}) == 1


async def test_slow_domain_does_not_delay_another(
    ada: GraphQLClient, environment: Environment
) -> None:
    dns_names = FakeDnsServer(
        {
            ("slow.example", "MX"): ["1 mx.slow.example."],
            ("mx.slow.example", "A"): ["127.0.0.1"],
            ("fast.example", "MX"): ["1 mx.fast.example."],
            ("mx.fast.example", "A"): ["127.0.0.2"],
        }
    )
    slow_server, fast_server = FakeSmtpServer(data_gate=asyncio.Event()), FakeSmtpServer()
    assert slow_server.data_gate is not None
    pace = replace(WORKER_LIMITS, max_destinations=3, claim_size=2)
    async with (
        run_dns_server(dns_names),
        run_smtp_server(slow_server),
        run_smtp_server(fast_server, "127.0.0.2", slow_server.port),
        run_queue_worker(
            environment,
            OutboundSettings(make_resolver=dns_names.make_resolver, mx_port=slow_server.port),
            pace,
        ),
    ):
        keys = [await queue_message(ada, NamedAddress(f"n{nth}@slow.example")) for nth in range(6)]
        fast_key = await queue_message(ada, NamedAddress("carol@fast.example"))
        await wait_until_tried(environment, fast_key)
        await wait_until(lambda: slow_server.session_count >= 2)  # both may begin later
        assert slow_server.session_count == 2
        slow_server.data_gate.set()
        for key in keys:
            await wait_until_tried(environment, key)
    assert sorted(mail.to[0][:2] for mail in slow_server.messages) == [
        f"n{nth}" for nth in range(6)
    ]


async def test_two_workers_send_each_message_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        keys = [await queue_message(ada, NamedAddress(f"n{nth}@example.net")) for nth in range(20)]
        small_pace = replace(WORKER_LIMITS, claim_size=3, max_destinations=4)
        async with (
            run_queue_worker(environment, relay_settings(server), small_pace),
            run_queue_worker(environment, relay_settings(server), small_pace),
        ):
            for key in keys:
                await wait_until_tried(environment, key)
    assert sorted(mail.to[0] for mail in server.messages) == sorted(
        f"n{nth}@example.net" for nth in range(20)
    )


async def test_accepted_message_is_not_resent_if_database_is_busy(
    ada: GraphQLClient, environment: Environment
) -> None:
    """The result is kept until the database can store it."""
    if environment.database.dialect != "sqlite":
        pytest.skip("another writer holds the whole store, as only SQLite lets it")
    path, timers = str(make_url(environment.database.url).database), list[threading.Timer]()

    def lock_database(fault_point: str) -> None:
        if fault_point == "sent" and not timers:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            # Longer than the 5 s that a transaction waits.
            timers.append(threading.Timer(7.0, connection.close))
            timers[0].start()

    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(
            replace(environment, reach_fault_point=lock_database), relay_settings(server)
        ),
    ):
        key = await queue_message(ada, NamedAddress("carol@example.net"))
        async with asyncio.timeout(HANG_SECONDS):
            while not await is_entry_in_state(environment, key, "carol", State.RELAYED):  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.1)
    assert timers
    row = (await load_queue_entries(environment, key))["carol"]
    assert (row.attempts, len(server.messages)) == (1, 1)


async def test_recipient_with_lost_result_is_sent_again(
    ada: GraphQLClient, environment: Environment
) -> None:
    """A standby database can have the claim of a recipient without its result."""
    process = make_other_process(environment)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(process, relay_settings(server)),
    ):
        key = await queue_message(ada, NamedAddress("carol@example.net"))
        row = (await wait_until_tried(environment, key))["carol"]
        values = {
            "state": State.PENDING,
            "lease": environment.new_id(),
            "holder": process.process.id,
        }
        statement = update(QueueEntry).where(col(QueueEntry.id) == row.id)
        statement = statement.values(**values, next_at=row.created_at, last_code=None)
        await environment.run_transaction(
            lambda transaction: transaction.connection.execute(statement).close()
        )
        await wait_until_tried(environment, key)
    row = (await load_queue_entries(environment, key))["carol"]
    assert (row.state, row.attempts, len(server.messages)) == (State.RELAYED, 2, 2)


async def test_only_unused_leases_are_released(
    ada: GraphQLClient, environment: Environment
) -> None:
    await queue_message(ada)
    (job,) = (
        await recipient_leases.release_held_and_claim_due_jobs(environment, WORKER_LIMITS)
    ).jobs
    ids = [recipient.delivery_id for recipient in job.recipients]
    environment.process.sending_entry_ids.append(lambda: ids[:1])
    assert await free_leases_after_two_looks(environment) == 1
    assert not await recipient_leases.mark_final_dot_if_leased(environment, job, ids)
    assert await recipient_leases.mark_final_dot_if_leased(environment, job, ids[:1])
    environment.process.sending_entry_ids.clear()
    recipient_leases.schedule_release_after_error(environment, job)
    assert await free_leases_after_two_looks(environment) == 0
    environment.process.abandoned_leases.clear()
    assert await free_leases_after_two_looks(environment) == 1
    jobs = (
        await recipient_leases.release_held_and_claim_due_jobs(
            make_other_process(environment), WORKER_LIMITS
        )
    ).jobs
    assert sum(len(claimed_job.recipients) for claimed_job in jobs) == 2
