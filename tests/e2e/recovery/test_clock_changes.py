"""The clocks of real servers are set while mail leaves: nothing is sent twice, nothing waits.

libfaketime changes the time of day of a server, and not its monotonic clocks. Its offset is in a
file, so the clock of a running server can be set.
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
from tests.support.stores.store_fixtures import create_database

USUAL = [f"d{nth}.example" for nth in range(4)]
CLUSTERS = [("sqlite", [0])]
if "LONG" in os.environ:  # `make conformance`; e2e/test_cluster_sending has skewed clocks, too
    CLUSTERS += [("postgres", [0, 300]), ("postgres", [0, HOUR])]
FLUSH = "mutation ($input: QueueFlushInput!) { queueFlush(input: $input) { errors { message } } }"


@pytest.fixture(params=CLUSTERS, ids=lambda given: f"{given[0]}{given[1]}")
async def here(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[ClockControlledServers]:
    kind, skews = request.param
    if kind not in store_fixtures.STORES:
        pytest.skip("not one of the stores that are tested")
    url = None
    if kind == "postgres":
        url = create_database(request.getfixturevalue("postgres"), f"clocks{skews[-1]}")
    async with (
        asyncio.timeout(TEST_TIME_LIMIT),
        run_clock_controlled_servers(tmp_path, url, skews) as made,
    ):
        yield made


async def test_steps_of_an_hour_neither_double_nor_delay_mail(here: ClockControlledServers) -> None:
    for ahead in (HOUR, 0, -HOUR):
        here.far.open.clear()
        await here.wait_until_received(*await here.send(*USUAL))
        await here.wait_until_received(
            *await here.send(LATER)
        )  # its retry is planned by the old clock
        await here.set_clocks(ahead)
        for nth in here.cluster.running:  # it looks at the queue: are the leases over?
            await here.wait_until_received(*await here.send(f"s{nth}.example", by=nth))
        here.far.open.set()
        await here.wait_until_delivered()
    assert here.far.deferred
    assert set(here.far.received.values()) == {1}


async def test_servers_killed_while_their_clocks_are_ahead_go_on_at_once(
    here: ClockControlledServers,
) -> None:
    far = here.far
    await here.set_clocks(HOUR)
    far.open.set()
    far.defers_always = True
    (stuck,) = await here.send(LATER)
    async with asyncio.timeout(STEP_TIME_LIMIT):  # its third attempt is an hour later
        while far.received_recipients.count(stuck) < 2:  # noqa: ASYNC110 - nobody rings
            await asyncio.sleep(0.02)
    far.open.clear()
    for nth in here.cluster.running:
        await here.wait_until_received(
            *await here.send(*(f"s{nth}-{each}" for each in USUAL), by=nth)
        )
    await here.kill_all()
    assert here.cluster.unconfirmed
    await here.set_clocks(0)
    far.open.set()
    before = far.received_recipients.count(stuck)
    for nth in range(len(here.cluster.servers)):
        await here.cluster.start(nth)
    here.sent.remove(stuck)
    await here.wait_until_delivered()
    assert max(far.received.values()) <= 2
    assert {to for to, times in far.received.items() if times > 1} <= set(here.cluster.unconfirmed)

    assert far.received_recipients.count(stuck) == before
    far.defers_always = False
    await here.run_mutation("queueFlush", FLUSH, {"all": True}, (here.root, 0))
    here.sent.add(stuck)
    await here.wait_until_delivered()
    assert far.received[stuck] == 1
