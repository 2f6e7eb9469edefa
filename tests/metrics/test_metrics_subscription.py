"""Subscription.metrics: results at intervals, shared reads, roles and bad input."""

import asyncio
from typing import Any

import pytest

from models.runtime.environment import Environment
from resolvers.metrics import live_metrics
from resolvers.metrics.loaders import PlatformMetrics, read_platform_set
from tests.conftest import GraphQLClient
from tests.support.servers.live_server import LiveServer, wait_until

METRICS = """subscription ($names: [MetricName!], $interval: Duration) {
  metrics(names: $names, interval: $interval) { type key counters { name value } } }"""


@pytest.mark.parametrize("transport", ["follow", "stream"])
async def test_results_come_at_once_and_after_each_interval(
    live_server: LiveServer, root: GraphQLClient, transport: str
) -> None:
    names = ["COMMANDS", "MEMORY", "CONNECTED_SESSIONS"]
    subscribe = live_server.follow if transport == "follow" else live_server.stream
    follower = await subscribe(root, METRICS, names=names, interval="PT1S")
    await wait_until(lambda: len(follower.results) == 1)
    await root("query Inbox { viewer { role } }")
    await wait_until(lambda: len(follower.results) == 3)
    sets = follower.results
    await follower.unsubscribe()
    assert all((one["type"], one["key"]) == ("GLOBAL", None) for one in sets)
    values = [{each["name"]: each["value"] for each in one["counters"]} for one in sets]
    assert values[0].keys() == set(names)
    assert values[2]["COMMANDS"] > values[0]["COMMANDS"]
    assert values[2]["CONNECTED_SESSIONS"] == 1


async def test_followers_share_the_reads_of_a_second(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []

    async def read_and_note(*arguments: Any) -> PlatformMetrics:
        reads.append(arguments)
        return await read_platform_set(*arguments)

    monkeypatch.setattr(live_metrics, "read_platform_set", read_and_note)
    reader = live_metrics.SharedMetricsReader(environment)
    rows = await asyncio.gather(*(reader.read_recent() for _ in range(50)))
    assert len(reads) == 1
    assert all(row is rows[0] for row in rows)


@pytest.mark.parametrize("interval", ["PT0S", "PT301S", "P1D"])
async def test_bad_interval_is_refused(
    live_server: LiveServer, admin_client: GraphQLClient, interval: str
) -> None:
    code = await live_server.follow_until_refused(admin_client, METRICS, interval=interval)
    assert code == "BAD_USER_INPUT"


async def test_users_can_not_subscribe(live_server: LiveServer, ada: GraphQLClient) -> None:
    assert await live_server.follow_until_refused(ada, METRICS) == "FORBIDDEN"
