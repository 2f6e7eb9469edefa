"""A clock that is set back makes no retry wait longer."""

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
from models.runtime.clock_steps import (
    WAIT_COLUMNS,
    WaitColumn,
    is_plausible_wait_running,
    shorten_waits_and_lower_other_clocks,
)
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.server_processes import ServerClock
from models.store.columns import core_table
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    is_entry_in_state,
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.stores.other_processes import make_other_process
from tests.support.stores.sample_rows import is_instant, sample_row

HOUR = timedelta(hours=1)
BACKOFF = timedelta(minutes=10)  # longer than the first pauses of a retry


@asynccontextmanager
async def deferred_recipient(
    ada: GraphQLClient, environment: Environment
) -> AsyncGenerator[tuple[int, FakeSmtpServer]]:
    """Defer a recipient once. The server accepts it from then on."""
    async with run_smtp_server(FakeSmtpServer({"carol": "451 4.3.0 Later"})) as smtp_server:
        async with run_queue_worker(environment, relay_settings(smtp_server)):
            key = await queue_message(ada, NamedAddress("carol@example.net"))
            await poll_until(lambda: is_entry_in_state(environment, key, "carol", State.DEFERRED))
        smtp_server.rcpt_replies.clear()
        yield key, smtp_server


async def wait_for_retry(environment: Environment, key: int, smtp_server: FakeSmtpServer) -> None:
    async with run_queue_worker(environment, relay_settings(smtp_server)):
        await poll_until(lambda: is_entry_in_state(environment, key, "carol", State.RELAYED))


async def test_retry_is_on_time_after_clock_set_back_while_running(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    clock.time += HOUR
    server = make_other_process(environment)
    async with (
        leases.keep_process_registered(server),
        deferred_recipient(ada, server) as (key, smtp_server),
    ):
        await leases.send_heartbeat_or_register_again(server)
        clock.time -= HOUR
        await send_two_heartbeats(server)
        clock.time += BACKOFF
        await wait_for_retry(server, key, smtp_server)


async def send_two_heartbeats(server: Environment) -> None:
    """Send the heartbeat that notes a step of the clock, and the next one."""
    await leases.send_heartbeat_or_register_again(server)
    await leases.send_heartbeat_or_register_again(server)


async def test_retry_committed_after_heartbeat_follows_clock(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = make_other_process(environment)
    server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
    await leases.ensure_process_registered(server)
    clock.time += HOUR
    await leases.send_heartbeat_or_register_again(server)
    clock.time -= HOUR
    await leases.send_heartbeat_or_register_again(server)
    clock.time += HOUR  # time that a transaction read before the step of the clock
    async with deferred_recipient(ada, server) as (key, smtp_server):
        clock.time -= HOUR
        await leases.send_heartbeat_or_register_again(server)
        clock.time += BACKOFF
        await wait_for_retry(server, key, smtp_server)


@pytest.mark.parametrize("boot", ["the same boot", "another boot"])
async def test_retry_is_on_time_after_clock_set_back_before_restart(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    boot: str,
) -> None:
    clock.time += HOUR
    old_process = make_other_process(environment)
    async with deferred_recipient(ada, old_process) as (key, smtp_server):
        clock.time -= HOUR
        if boot == "another boot":
            monkeypatch.setattr(clock_steps, "boot_id", lambda: boot)
        new_process = make_other_process(environment)
        new_process.process.server_id = old_process.process.server_id
        await leases.ensure_process_registered(new_process)
        clock.time += BACKOFF
        await wait_for_retry(new_process, key, smtp_server)


async def test_retry_of_stopped_server_does_not_follow_its_clock(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server_ahead = make_other_process(environment, ahead=HOUR)
    other_server = make_other_process(environment, name="heir")
    async with (
        leases.keep_process_registered(other_server),
        deferred_recipient(ada, server_ahead) as (key, smtp_server),
    ):

        async def is_clock_deleted() -> bool:
            return await server_ids_with_clock(environment) == {other_server.process.server_id}

        await poll_until(is_clock_deleted)
        clock.time += BACKOFF
        await wait_for_retry(other_server, key, smtp_server)


async def test_retry_is_on_time_after_clock_ahead_between_heartbeats(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = make_other_process(environment)
    server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
    await leases.ensure_process_registered(server)
    await leases.send_heartbeat_or_register_again(server)
    clock.time += HOUR
    async with deferred_recipient(ada, server) as (key, smtp_server):
        clock.time -= HOUR
        await send_two_heartbeats(server)
        clock.time += BACKOFF
        await wait_for_retry(server, key, smtp_server)
        assert server.process.clock_ahead_before_step is None


async def test_clocks_of_several_servers_set_back_shorten_waits_once(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    servers = [make_other_process(environment, name=name) for name in ("one", "two")]
    servers.append(make_other_process(environment, name="three"))
    servers[2].process.server_id = servers[1].process.server_id  # a second process of a server
    for server in servers:
        server.process.heartbeat_seconds = HOUR.total_seconds()  # the test sends the heartbeats
        await leases.ensure_process_registered(server)
    clock.time += HOUR
    for server in servers[1:]:
        await leases.send_heartbeat_or_register_again(server)
    async with deferred_recipient(ada, servers[0]) as (key, _smtp_server):
        planned = await next_attempt_time(environment, key)
        clock.time -= HOUR
        for server in servers * 2:
            await leases.send_heartbeat_or_register_again(server)
        moved_by = planned - await next_attempt_time(environment, key)
        assert abs(moved_by - HOUR) < timedelta(seconds=30)


async def server_ids_with_clock(environment: Environment) -> set[str]:
    return {row.server for row in await environment.database.read(select(col(ServerClock.server)))}


async def test_small_or_forward_clock_step_changes_no_wait(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server = make_other_process(environment)
    async with deferred_recipient(ada, server) as (key, _smtp_server):
        await leases.ensure_process_registered(server)
        planned = await next_attempt_time(environment, key)
        for step in (HOUR, -timedelta(seconds=20), HOUR):
            clock.time += step
            await send_two_heartbeats(server)
        assert await next_attempt_time(environment, key) == planned


async def next_attempt_time(environment: Environment, key: int) -> datetime:
    query = select(col(QueueEntry.next_at)).where(col(QueueEntry.submission_id) == key)
    (row,) = await environment.database.read(query)
    planned: datetime = row.next_at
    return planned


async def test_scheduled_message_keeps_its_send_at(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    server, send_at = make_other_process(environment), clock.time + 3 * HOUR
    await leases.ensure_process_registered(server)
    key = await queue_message(ada, NamedAddress("carol@example.net"), send_at=send_at)
    clock.time -= HOUR
    await send_two_heartbeats(server)
    assert await next_attempt_time(environment, key) == send_at
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(server, WORKER_LIMITS)
    ).jobs == []


@pytest.mark.parametrize("wait", WAIT_COLUMNS, ids=lambda wait: str(wait.column))
async def test_each_wait_column_is_shortened_exactly(
    environment: Environment, wait: WaitColumn
) -> None:
    now, table = environment.now(), core_table(wait.table)
    ends = now + 2 * HOUR + timedelta(milliseconds=345)
    row = sample_row(wait.table) | {wait.column.key: ends}
    if table.name == "submissions":
        row |= {"release_at": ends}
    if table.name == "dkim_keys":
        row |= {"state": "PENDING"}
    async with environment.database.engine.begin() as connection:
        if environment.database.dialect == "sqlite":
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        else:
            await connection.exec_driver_sql("SET session_replication_role = replica")
        await connection.execute(insert(table), row)
        await connection.run_sync(
            lambda sync_connection: shorten_waits_and_lower_other_clocks(
                DatabaseTransaction(sync_connection, environment), HOUR
            )
        )
        stored_times = (await connection.execute(select(table.c[wait.column.key]))).scalars().all()
        await connection.rollback()
    assert ends - HOUR in stored_times


# Times that are no waits of limited length: retention and validity times, times that a user
# chose, the end of a certificate.
ABSOLUTE_TIMES = {
    "access_tokens.expires_at", "acme_challenges.expires_at", "addresses.expires_at",
    "oauth_authorization_codes.expires_at", "oauth_refresh_tokens.expires_at",
    "used_identity_tokens.expires_at", "user_affinities.expires_at",
    "api_keys.expires_at", "application_passwords.expires_at", "legal_holds.expires_at",
    "autoreplies.ends_at",
    "autoreply_senders.until", "certificates.acme_renew_at", "certificates.not_after",
    "certificates.not_before", "compose_requests.expires_at", "queue_entries.expires_at",
    "deleted_users.purge_at", "exports.expires_at", "file_shares.expires_at",
    "greylist_entries.until", "key_value_entries.expires_at", "messages.expires_at",
    "messages.purge_at", "messages.snoozed_until", "destination_slots.free_at",
    "destination_slots.until",
    "quarantine_items.expires_at", "sieve_memories.until",
    "mta_sts_policies.expires_at",
    "tasks.not_before", "undo_records.expires_at", "uploads.expires_at",
    "users.storage_notified_until",
    "users.temporary_until", "webhook_deliveries.expires_at", "webhooks.old_until",
}  # fmt: skip
TIME_COLUMN_WORDS = (
    "until",
    "expires",
    "due",
    "next",
    "retry",
    "not_",
    "release",
    "purge",
    "after",
    "free_at",
)


def test_every_time_column_is_wait_or_absolute_time() -> None:
    wait_columns = {f"{core_table(wait.table).name}.{wait.column.key}" for wait in WAIT_COLUMNS}
    time_columns = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.c
        if is_instant(column) and any(word in column.name for word in TIME_COLUMN_WORDS)
    }
    waits_without_word = {"push_channels.window_at", "greylist_entries.since"}
    assert time_columns - ABSOLUTE_TIMES == wait_columns - waits_without_word


def test_wait_beyond_its_limit_is_over() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    ends = [now, now + timedelta(seconds=1), now + HOUR, now + 2 * HOUR]
    assert [is_plausible_wait_running(end, now, HOUR) for end in ends] == [False, True, True, False]


def test_rate_limit_in_memory_ends_if_clock_is_set_back(clock: ManualClock) -> None:
    counter = HourlyCounter(1, clock)
    counter.count_event("network")
    assert counter.is_limit_reached("network")
    clock.time -= timedelta(minutes=1)
    assert not counter.is_limit_reached("network")
    counter.count_event("network")
    assert counter.is_limit_reached("network")
