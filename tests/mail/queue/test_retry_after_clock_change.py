"""A clock that is set back makes no wait longer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select
from sqlmodel import SQLModel, col

from mail.limits.rate_counter import HourlyCounter
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from models.queue.tables import QueueEntry
from models.runtime import clock_steps, leases
from models.runtime.clock_steps import WAIT_COLUMNS, WaitColumn, is_waiting, shorten_waits
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.server_processes import ServerClock
from models.store.columns import core_table
from tests.conftest import Client, Clock
from tests.support.mail_servers.queue_worker import PACE, State, is_now, relay, send, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.stores.other_processes import another_process
from tests.support.stores.sample_rows import is_instant, sample_row

HOUR = timedelta(hours=1)
BACKOFF = timedelta(minutes=10)  # longer than the first pauses of a retry


@asynccontextmanager
async def deferred(ada: Client, world: Environment) -> AsyncGenerator[tuple[int, Server]]:
    """A recipient that was put off once, and whose server takes it from now on."""
    async with listening(Server({"carol": "451 4.3.0 Later"})) as there:
        async with working(world, relay(there)):
            key = await send(ada, NamedAddress("carol@example.net"))
            await until(lambda: is_now(world, key, "carol", State.DEFERRED))
        there.replies.clear()
        yield key, there


async def retried(world: Environment, key: int, there: Server) -> None:
    async with working(world, relay(there)):
        await until(lambda: is_now(world, key, "carol", State.RELAYED))


async def test_a_retry_comes_in_time_though_the_clock_was_set_back_while_the_server_ran(
    ada: Client, world: Environment, clock: Clock
) -> None:
    clock.time += HOUR
    server = another_process(world)
    async with leases.registered_process(server), deferred(ada, server) as (key, there):
        await leases.send_heartbeat(server)
        clock.time -= HOUR
        await beat_twice(server)
        clock.time += BACKOFF
        await retried(server, key, there)


async def beat_twice(server: Environment) -> None:
    """Send the heartbeat that notes a step of the clock, and the one that follows it."""
    await leases.send_heartbeat(server)
    await leases.send_heartbeat(server)


async def test_a_retry_that_is_committed_after_a_heartbeat_follows_the_clock_too(
    ada: Client, world: Environment, clock: Clock
) -> None:
    server = another_process(world)
    server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
    await leases.ensure_registered(server)
    clock.time += HOUR
    await leases.send_heartbeat(server)
    clock.time -= HOUR
    await leases.send_heartbeat(server)
    clock.time += HOUR  # what a transaction read before the step that the heartbeat has noted
    async with deferred(ada, server) as (key, there):
        clock.time -= HOUR
        await leases.send_heartbeat(server)
        clock.time += BACKOFF
        await retried(server, key, there)


@pytest.mark.parametrize("boot", ["the same boot", "another boot"])
async def test_a_retry_comes_in_time_though_the_clock_was_set_back_before_a_restart(
    ada: Client, world: Environment, clock: Clock, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    clock.time += HOUR
    before = another_process(world)
    async with deferred(ada, before) as (key, there):
        clock.time -= HOUR
        if boot == "another boot":
            monkeypatch.setattr(clock_steps, "boot_id", lambda: boot)
        after = another_process(world)
        after.process.server_id = before.process.server_id
        await leases.ensure_registered(after)
        clock.time += BACKOFF
        await retried(after, key, there)


async def test_a_retry_of_a_server_that_ended_does_not_wait_for_its_clock(
    ada: Client, world: Environment, clock: Clock
) -> None:
    ahead, heir = another_process(world, ahead=HOUR), another_process(world, name="heir")
    async with leases.registered_process(heir), deferred(ada, ahead) as (key, there):

        async def forgotten() -> bool:
            return await clocks(world) == {heir.process.server_id}

        await until(forgotten)
        clock.time += BACKOFF
        await retried(heir, key, there)


async def test_a_retry_comes_in_time_though_the_clock_was_ahead_between_two_heartbeats(
    ada: Client, world: Environment, clock: Clock
) -> None:
    server = another_process(world)
    server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
    await leases.ensure_registered(server)
    await leases.send_heartbeat(server)
    clock.time += HOUR
    async with deferred(ada, server) as (key, there):
        clock.time -= HOUR
        await beat_twice(server)
        clock.time += BACKOFF
        await retried(server, key, there)
        assert server.process.clock_ahead_before_step is None


async def test_clocks_of_several_servers_that_are_set_back_shorten_waits_once(
    ada: Client, world: Environment, clock: Clock
) -> None:
    servers = [another_process(world, name=name) for name in ("one", "two")]
    servers.append(another_process(world, name="three"))
    servers[2].process.server_id = servers[1].process.server_id  # a second process of a server
    for server in servers:
        server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
        await leases.ensure_registered(server)
    clock.time += HOUR
    for server in servers[1:]:
        await leases.send_heartbeat(server)
    async with deferred(ada, servers[0]) as (key, _there):
        planned = await next_attempt(world, key)
        clock.time -= HOUR
        for server in servers * 2:
            await leases.send_heartbeat(server)
        moved = planned - await next_attempt(world, key)
        assert abs(moved - HOUR) < timedelta(seconds=30)


async def clocks(world: Environment) -> set[str]:
    return {row.server for row in await world.database.read(select(col(ServerClock.server)))}


async def test_a_small_or_a_forward_step_changes_no_wait(
    ada: Client, world: Environment, clock: Clock
) -> None:
    server = another_process(world)
    async with deferred(ada, server) as (key, _there):
        await leases.ensure_registered(server)
        planned = await next_attempt(world, key)
        for step in (HOUR, -timedelta(seconds=20), HOUR):
            clock.time += step
            await beat_twice(server)
        assert await next_attempt(world, key) == planned


async def next_attempt(world: Environment, key: int) -> datetime:
    asked = select(col(QueueEntry.next_at)).where(col(QueueEntry.submission_id) == key)
    (row,) = await world.database.read(asked)
    planned: datetime = row.next_at
    return planned


async def test_a_scheduled_message_is_sent_at_its_time_of_day(
    ada: Client, world: Environment, clock: Clock
) -> None:
    server, at = another_process(world), clock.time + 3 * HOUR
    await leases.ensure_registered(server)
    key = await send(ada, NamedAddress("carol@example.net"), send_time=at)
    clock.time -= HOUR
    await beat_twice(server)
    assert await next_attempt(world, key) == at
    assert (await recipient_leases.claim_due_jobs(server, PACE)).jobs == []


@pytest.mark.parametrize("wait", WAIT_COLUMNS, ids=lambda wait: str(wait.column))
async def test_every_wait_is_shortened_to_the_microsecond(
    world: Environment, wait: WaitColumn
) -> None:
    now, table = world.now(), core_table(wait.table)
    ends = now + 2 * HOUR + timedelta(milliseconds=345)
    row = sample_row(wait.table) | {wait.column.key: ends}
    if table.name == "submissions":
        row |= {"release_at": ends}
    if table.name == "dkim_keys":
        row |= {"state": "PENDING"}
    async with world.database.engine.begin() as connection:
        if world.database.dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        else:
            await connection.exec_driver_sql("SET session_replication_role = replica")
        await connection.execute(insert(table), row)
        await connection.run_sync(
            lambda sync: shorten_waits(DatabaseTransaction(sync, world), HOUR)
        )
        found = (await connection.execute(select(table.c[wait.column.key]))).scalars().all()
        await connection.rollback()
    assert ends - HOUR in found


# Ends that are no waits of limited length: how long something is kept or counts, a time of day
# that somebody has chosen, the end of a certificate.
KEPT = {
    "access_tokens.expires_at", "acme_challenges.expires_at", "addresses.expires_at",
    "api_keys.expires_at", "app_passwords.expires_at", "audits.expires", "autoreplies.ends_at",
    "autoreply_senders.until", "certificates.acme_renew_at", "certificates.not_after",
    "certificates.not_before", "compose_requests.expires_at", "deliveries.expires_at",
    "deleted_users.delete_after", "exports.expires_at", "file_shares.expires_at",
    "greylisted.until", "key_values.expires_at", "messages.expires", "messages.purge_at",
    "messages.snoozed_until", "place_turns.free_at", "place_turns.until",
    "quarantine_items.expires_at", "sieve_memories.until", "sts_policies.expires_at",
    "tasks.not_before", "undos.expires_at", "uploads.expires_at", "users.storage_told_until",
    "users.temporary_until", "webhook_deliveries.expires_at", "webhooks.old_until",
}  # fmt: skip
ENDS = ("until", "expires", "due", "next", "retry", "not_", "release", "purge", "after", "free_at")


def test_every_end_of_a_time_is_a_wait_or_is_meant_to_be_a_time_of_day() -> None:
    known = {f"{core_table(wait.table).name}.{wait.column.key}" for wait in WAIT_COLUMNS}
    found = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.c
        if is_instant(column) and any(word in column.name for word in ENDS)
    }
    others = {"push_channels.window_at", "greylisted.since"}
    assert found - KEPT == known - others


def test_a_wait_that_is_further_ahead_than_it_can_be_is_over() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    ends = [now, now + timedelta(seconds=1), now + HOUR, now + 2 * HOUR]
    assert [is_waiting(end, now, HOUR) for end in ends] == [False, True, True, False]


def test_a_limit_in_memory_does_not_outlast_a_clock_that_is_set_back(clock: Clock) -> None:
    rates = HourlyCounter(1, clock)
    rates.count_event("network")
    assert rates.is_limit_reached("network")
    clock.time -= timedelta(minutes=1)
    assert not rates.is_limit_reached("network")
    rates.count_event("network")
    assert rates.is_limit_reached("network")
