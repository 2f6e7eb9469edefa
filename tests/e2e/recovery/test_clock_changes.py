"""Tests that changes of the clocks of real servers neither duplicate nor delay mail.

libfaketime changes the time of day of a server, and not its monotonic clocks. Its offset is in a
file, so that the clock of a running server can be set.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from bench.cluster_soak import LATER
from tests.support.servers.clock_controlled_servers import (
    HOUR,
    STEP_TIME_LIMIT,
    TEST_TIME_LIMIT,
    ClockControlledServers,
    run_clock_controlled_servers,
)
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

DOMAINS = [f"d{nth}.example" for nth in range(4)]
CLUSTERS = [("sqlite", [0])]
if "LONG" in os.environ:  # `make conformance`
    CLUSTERS += [("postgres", [0, 300]), ("postgres", [0, HOUR])]
QUEUE_FLUSH = (
    "mutation ($input: QueueFlushInput!) { queueFlush(input: $input) { errors { message } } }"
)


@pytest.fixture(params=CLUSTERS, ids=lambda arguments: f"{arguments[0]}{arguments[1]}")
async def servers(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[ClockControlledServers]:
    kind, skews = request.param
    if kind not in store_fixtures.STORES:
        pytest.skip("not one of the stores that are tested")
    url = None
    if kind == "postgres":
        url = create_migrated_database(request.getfixturevalue("postgres"), f"clocks{skews[-1]}")
    async with (
        asyncio.timeout(TEST_TIME_LIMIT),
        run_clock_controlled_servers(tmp_path, url, skews) as started_servers,
    ):
        yield started_servers


async def test_clock_steps_of_an_hour_neither_duplicate_nor_delay_mail(
    servers: ClockControlledServers,
) -> None:
    for offset in (HOUR, 0, -HOUR):
        servers.mail_server.open.clear()
        await servers.wait_until_received(*await servers.send_message(*DOMAINS))
        # its retry is scheduled by the old clock
        await servers.wait_until_received(*await servers.send_message(LATER))
        await servers.set_clocks(offset)
        for number in servers.cluster.running:  # the server reads the queue and checks the leases
            await servers.wait_until_received(
                *await servers.send_message(f"s{number}.example", server_index=number)
            )
        servers.mail_server.open.set()
        await servers.wait_until_delivered()
    assert servers.mail_server.deferred
    assert set(servers.mail_server.received.values()) == {1}


async def test_servers_killed_with_clocks_ahead_continue_at_once(
    servers: ClockControlledServers,
) -> None:
    receiver = servers.mail_server
    await servers.set_clocks(HOUR)
    receiver.open.set()
    receiver.defers_always = True
    (deferred_recipient,) = await servers.send_message(LATER)
    async with asyncio.timeout(STEP_TIME_LIMIT):  # the third attempt is an hour later
        while receiver.received_recipients.count(deferred_recipient) < 2:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)
    receiver.open.clear()
    for number in servers.cluster.running:
        await servers.wait_until_received(
            *await servers.send_message(
                *(f"s{number}-{domain}" for domain in DOMAINS), server_index=number
            )
        )
    await servers.kill_all()
    assert servers.cluster.unconfirmed
    await servers.set_clocks(0)
    receiver.open.set()
    attempts_before = receiver.received_recipients.count(deferred_recipient)
    for number in range(len(servers.cluster.servers)):
        await servers.cluster.start(number)
    servers.sent_recipients.remove(deferred_recipient)
    await servers.wait_until_delivered()
    assert max(receiver.received.values()) <= 2
    assert {recipient for recipient, count in receiver.received.items() if count > 1} <= set(
        servers.cluster.unconfirmed
    )

    assert receiver.received_recipients.count(deferred_recipient) == attempts_before
    receiver.defers_always = False
    await servers.run_mutation("queueFlush", QUEUE_FLUSH, {"all": True}, (servers.root, 0))
    servers.sent_recipients.add(deferred_recipient)
    await servers.wait_until_delivered()
    assert receiver.received[deferred_recipient] == 1
