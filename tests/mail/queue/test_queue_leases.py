"""Leases, crashes, stops, and many at once."""

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
from mail.queue.delivery_results import record_results
from mail.routing.mx_hosts import OutboundSettings, parse_next_hop
from models.queue.tables import QueueEntry
from models.runtime import leases
from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.mail_servers.queue_worker import (
    PACE,
    SLOW,
    State,
    deliveries,
    is_now,
    relay,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening
from tests.support.stores.other_processes import (
    DEAD_AFTER,
    another_process,
    free_after_two_looks,
    taken_for_dead,
)


async def test_sending_wakes_the_worker_at_once(ada: Client, world: Environment) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        await asyncio.sleep(0.1)  # it has looked, and waits for the bell
        key = await send(ada)
        async with asyncio.timeout(5):
            await settled(world, key)


async def test_a_dead_workers_lease_ends_with_its_registration(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await send(ada)
    first = await recipient_leases.claim_due_jobs(world, PACE)
    (job,) = first.jobs
    assert len(job.recipients) == 2
    assert (await recipient_leases.claim_due_jobs(world, PACE)).jobs == []
    clock.tick(days=1)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).jobs == []
    assert await recipient_leases.mark_final_dot(
        world, job, [to.delivery_id for to in job.recipients]
    )
    await taken_for_dead(world)
    assert not await recipient_leases.mark_final_dot(
        world, job, [to.delivery_id for to in job.recipients]
    )
    again = await recipient_leases.claim_due_jobs(world, PACE)
    assert (len(again.jobs), again.uncertain_count) == (1, 2)

    late = DeliveryResult(State.RELAYED, 250, "OK")  # the first worker was not dead, only slow
    await record_results(world, job, {to.delivery_id: late for to in job.recipients}, b"")
    rows = await deliveries(world, job.submission_id)
    assert {(row.state, row.lease) for row in rows.values()} == {
        (State.PENDING, again.jobs[0].lease)
    }


async def test_stopping_gives_back_what_has_not_come_to_the_dot(
    ada: Client, world: Environment
) -> None:
    greeted = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 there\r\n")
        while line := await reader.readline():
            if line.startswith(b"RCPT"):
                greeted.set()
                continue  # no answer
            writer.write(b"250 OK\r\n")
        writer.close()

    listener = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, working(world, OutboundSettings(parse_next_hop(f"127.0.0.1:{port}"))):
        key = await send(ada)
        await asyncio.wait_for(greeted.wait(), 5)
    for row in (await deliveries(world, key)).values():
        assert (row.state, row.lease, row.attempts) == (State.PENDING, None, 0)
        assert row.next_at == world.now()


async def test_stopping_waits_for_the_answer_to_the_dot(ada: Client, world: Environment) -> None:
    async with listening(Server(gate=asyncio.Event())) as there:
        assert there.gate is not None
        async with working(world, relay(there)) as stop:
            key = await send(ada)

            async def dotted() -> bool:
                return there.dots == 1

            await until(dotted)
            stop.set()
            await asyncio.sleep(0.1)
            there.gate.set()
    rows = await deliveries(world, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert len(there.mails) == 1


async def test_leases_are_held_while_the_answer_takes_its_time(
    ada: Client, world: Environment, clock: Clock
) -> None:
    far = another_process(world, name="far")
    async with listening(Server(gate=asyncio.Event())) as there, leases.registered_process(far):
        assert there.gate is not None
        patient = replace(PACE, final_reply_timeout=SLOW)  # longer than the test takes
        async with working(another_process(world), relay(there), patient):
            key = await send(ada)
            for _ in range(4):
                await asyncio.sleep(DEAD_AFTER)
                clock.tick(minutes=3)
                assert (await recipient_leases.claim_due_jobs(far, PACE)).jobs == []
            there.gate.set()
            rows = await settled(world, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert there.dots == 1


@pytest.mark.parametrize(("place", "sent_before"), [("dot", 0), ("sent", 1)])
async def test_an_error_of_ours_beside_the_dot_is_tried_again_and_marked(
    ada: Client, world: Environment, clock: Clock, place: str, sent_before: int
) -> None:
    def breaking(where: str) -> None:
        if where == place:
            raise OSError("broken")

    async with listening(Server()) as there:
        async with working(replace(world, reach_fault_point=breaking), relay(there)):
            key = await send(ada, NamedAddress("carol@example.net"))
            row = (await settled(world, key))["carol"]
        assert (row.state, len(there.mails)) == (State.DEFERRED, sent_before)
        assert (row.final_dot_at is not None) is bool(sent_before)
        clock.tick(minutes=2)
        async with working(world, relay(there)):
            await until(lambda: is_now(world, key, "carol", State.RELAYED))
    assert len(there.mails) == sent_before + 1
    assert len({mail.raw for mail in there.mails}) == 1


async def test_a_slow_domain_does_not_hold_up_another(ada: Client, world: Environment) -> None:
    names = Names(
        {
            ("slow.example", "MX"): ["1 mx.slow.example."],
            ("mx.slow.example", "A"): ["127.0.0.1"],
            ("fast.example", "MX"): ["1 mx.fast.example."],
            ("mx.fast.example", "A"): ["127.0.0.2"],
        }
    )
    slow, fast = Server(gate=asyncio.Event()), Server()
    assert slow.gate is not None
    pace = replace(PACE, max_destinations=3, claim_size=2)
    async with (
        answering(names),
        listening(slow),
        listening(fast, "127.0.0.2", slow.port),
        working(world, OutboundSettings(make_resolver=names.resolver, mx_port=slow.port), pace),
    ):
        keys = [await send(ada, NamedAddress(f"n{nth}@slow.example")) for nth in range(6)]
        last = await send(ada, NamedAddress("carol@fast.example"))
        await settled(world, last)
        assert slow.sessions == 2
        slow.gate.set()
        for key in keys:
            await settled(world, key)
    assert sorted(mail.to[0][:2] for mail in slow.mails) == [f"n{nth}" for nth in range(6)]


async def test_two_workers_send_each_message_once(ada: Client, world: Environment) -> None:
    async with listening(Server()) as there:
        keys = [await send(ada, NamedAddress(f"n{nth}@example.net")) for nth in range(20)]
        small = replace(PACE, claim_size=3, max_destinations=4)
        async with working(world, relay(there), small), working(world, relay(there), small):
            for key in keys:
                await settled(world, key)
    assert sorted(mail.to[0] for mail in there.mails) == sorted(
        f"n{nth}@example.net" for nth in range(20)
    )


async def test_what_was_taken_is_not_sent_again_because_the_store_is_busy(
    ada: Client, world: Environment
) -> None:
    """The result waits until the store can take it: the recipient is not tried a second time."""
    if world.database.dialect != "sqlite":
        pytest.skip("another writer holds the whole store, as only SQLite lets it")
    path, timers = str(make_url(world.database.url).database), list[threading.Timer]()

    def busy(where: str) -> None:
        if where == "sent" and not timers:
            other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            timers.append(threading.Timer(7.0, other.close))  # longer than a unit waits: 5 s
            timers[0].start()

    async with (
        listening(Server()) as there,
        working(replace(world, reach_fault_point=busy), relay(there)),
    ):
        key = await send(ada, NamedAddress("carol@example.net"))
        async with asyncio.timeout(60):
            while not await is_now(world, key, "carol", State.RELAYED):  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.1)
    assert timers
    row = (await deliveries(world, key))["carol"]
    assert (row.attempts, len(there.mails)) == (1, 1)


async def test_a_recipient_whose_result_the_store_lost_is_sent_again(
    ada: Client, world: Environment
) -> None:
    """A standby can have the claim of a recipient and lack its result; the process goes on."""
    process = another_process(world)
    async with listening(Server()) as there, working(process, relay(there)):
        key = await send(ada, NamedAddress("carol@example.net"))
        row = (await settled(world, key))["carol"]
        values = {"state": State.PENDING, "lease": world.new_id(), "holder": process.process.id}
        claimed = update(QueueEntry).where(col(QueueEntry.id) == row.id)
        claimed = claimed.values(**values, next_at=row.created_at, last_code=None)
        await world.run_transaction(lambda turn: turn.connection.execute(claimed).close())
        await settled(world, key)
    row = (await deliveries(world, key))["carol"]
    assert (row.state, row.attempts, len(there.mails)) == (State.RELAYED, 2, 2)


async def test_only_leases_without_work_are_given_back(ada: Client, world: Environment) -> None:
    await send(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    ids = [to.delivery_id for to in job.recipients]
    world.process.sending_entry_ids.append(lambda: ids[:1])
    assert await free_after_two_looks(world) == 1
    assert not await recipient_leases.mark_final_dot(world, job, ids)
    assert await recipient_leases.mark_final_dot(world, job, ids[:1])
    world.process.sending_entry_ids.clear()
    recipient_leases.release_after_error(world, job)
    assert await free_after_two_looks(world) == 0
    world.process.abandoned_leases.clear()
    assert await free_after_two_looks(world) == 1
    again = (await recipient_leases.claim_due_jobs(another_process(world), PACE)).jobs
    assert sum(len(each.recipients) for each in again) == 2
