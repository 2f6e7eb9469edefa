"""How often a sender gets an automatic reply: interval, changed texts and daily limit."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mail.autoreply import reply_sender
from mail.maintenance.housekeeping import run_housekeeping_round
from mail.smtp import lmtp
from models.runtime.environment import Environment
from models.users.tables import Usage
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail.queued_deliveries import queued_reply_recipients
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.queue_worker import load_inbox_rows
from tests.support.operations.autoreply_operations import send_unique_message, set_autoreply
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_sender_gets_one_reply_per_interval(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await set_autoreply(ada, interval="P7D")
    for sender in ("carol@example.com", "Carol+x@EXAMPLE.com", "dave@example.com"):
        await send_unique_message(lmtp_client, sender)
    clock.tick(days=6, hours=23)
    await send_unique_message(lmtp_client)
    assert await queued_reply_recipients(environment) == ["carol@example.com", "dave@example.com"]
    clock.tick(hours=1)
    await send_unique_message(lmtp_client)
    assert await queued_reply_recipients(environment) == [
        "carol@example.com",
        "dave@example.com",
        "carol@example.com",
    ]


async def test_default_interval_is_a_setting(
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    lmtp_client: SmtpTestClient,
    clock: ManualClock,
) -> None:
    await set_autoreply(ada)
    answer = await execute_mutation(
        root, "settingSet", "setting { value }", key="autoreply.interval", value="PT2H"
    )
    assert answer["errors"] == []
    await send_unique_message(lmtp_client)
    clock.tick(hours=1, minutes=59)
    await send_unique_message(lmtp_client)
    assert len(await queued_reply_recipients(environment)) == 1
    clock.tick(minutes=1)
    await send_unique_message(lmtp_client)
    assert len(await queued_reply_recipients(environment)) == 2


async def test_changed_text_or_time_replies_again(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    await set_autoreply(ada)
    await send_unique_message(lmtp_client)
    await set_autoreply(ada, name="Ada", interval="P9D")
    await send_unique_message(lmtp_client)
    assert len(await queued_reply_recipients(environment)) == 1
    cases: list[dict[str, Any]] = [
        {"subject": "Away"},
        {"html": "<p>x"},
        {"internalText": "x"},
        {"endsAt": "2031-01-01T00:00:00Z"},
        {"startsAt": "2029-12-31T00:00:00Z"},
        {"text": "Away still."},  # the last case, since the other cases set the first text
    ]
    for case in each_case(cases):
        with case as arguments:
            count = len(await queued_reply_recipients(environment))
            await set_autoreply(ada, **arguments)
            await send_unique_message(lmtp_client)
            await send_unique_message(lmtp_client)
            assert len(await queued_reply_recipients(environment)) == count + 1


async def test_reenabled_autoreply_replies_again(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    for expected_count in (1, 2):
        await set_autoreply(ada, enabled=False)
        await send_unique_message(lmtp_client)
        assert len(await queued_reply_recipients(environment)) == expected_count - 1
        await set_autoreply(ada)
        await send_unique_message(lmtp_client)
        assert len(await queued_reply_recipients(environment)) == expected_count


async def test_concurrent_deliveries_get_one_reply(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    connections = [await connect_lmtp(listener.port) for _ in range(20)]
    try:
        await asyncio.gather(*(send_unique_message(connection) for connection in connections))
        assert await queued_reply_recipients(environment) == ["carol@example.com"]
        assert len(await load_inbox_rows(ada)) == 20
    finally:
        for connection in connections:
            await connection.close()
        await listener.close(1)


async def test_replies_over_daily_limit_are_not_sent(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await set_autoreply(ada)
    await send_unique_message(lmtp_client)
    async with environment.write_session(ada.user.id) as session:
        connection = await session.connection()
        await connection.execute(update(Usage).values(used=reply_sender.MAX_REPLIES_PER_DAY - 1))
    await send_unique_message(lmtp_client, "dave@example.com")
    await send_unique_message(lmtp_client, "eve@example.com")
    assert await queued_reply_recipients(environment) == ["carol@example.com", "dave@example.com"]
    clock.tick(days=1)
    await send_unique_message(lmtp_client, "eve@example.com")
    assert (await queued_reply_recipients(environment))[2:] == ["eve@example.com"]


async def test_housekeeping_deletes_expired_senders(
    ada: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient, clock: ManualClock
) -> None:
    await set_autoreply(ada)
    await send_unique_message(lmtp_client)
    assert (await run_housekeeping_round(environment)).autoreply_senders == 0
    clock.tick(days=1)
    assert (await run_housekeeping_round(environment)).autoreply_senders == 1
    assert await select_rows(environment, "SELECT * FROM autoreply_senders") == []


async def test_concurrent_changes_send_one_reply_per_sender(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await set_autoreply(ada)
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    connections = [await connect_lmtp(listener.port) for _ in range(8)]
    try:
        senders = [f"s{nth}@example.com" for nth in range(8)]
        deliveries = [send_unique_message(*item) for item in zip(connections, senders, strict=True)]
        changes = [set_autoreply(ada, text=f"Away {nth}.") for nth in range(2)]
        await asyncio.gather(*deliveries[:4], changes[0], *deliveries[4:], changes[1])
        assert sorted(await queued_reply_recipients(environment)) == senders
    finally:
        for item in connections:
            await item.close()
        await listener.close(1)
