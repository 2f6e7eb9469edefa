"""Tests that subscribers see every stored change despite failures, in a short run."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.change_stream.change_stream_proof import ProofPlan, prove_change_stream
from bench.servers.bus_servers import InterruptibleBus, PostgresNotifyBus, SocketBus
from bench.servers.merganser_process import MerganserServer
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.servers.bus_servers import BROKERS
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

CHANGE_COUNT = 300 if RUNS_ALL_TESTS else 150
SEED = 7
FAILURES_BY_KIND = {  # by database and number of processes: the event bus and the failures
    "sqlite-1": ("", ("cut", "kill", "mend", "trim")),
    "sqlite-2": ("redis", ("cut", "one", "mend", "first")),
    "postgres-1": ("", ("cut", "kill", "mend", "trim")),
    "postgres-2": ("nats", ("cut", "one", "mend", "kill")),
}


def available_kinds() -> list[str]:
    return [kind for kind in FAILURES_BY_KIND if kind.partition("-")[0] in store_fixtures.STORES]


@pytest.fixture(params=available_kinds())
async def proof_setup(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[str, MerganserServer, InterruptibleBus]]:
    store, bus = None, None
    if request.param.startswith("postgres"):
        store = create_migrated_database(request.getfixturevalue("postgres"), "proof")
        bus = PostgresNotifyBus(store)
    server = MerganserServer(
        tmp_path, store, ("--workers", "2") if request.param.endswith("2") else ()
    )
    broker = BROKERS[name](tmp_path) if (name := FAILURES_BY_KIND[request.param][0]) else None
    if broker:
        server.extra_environment["MERGANSER_EVENT_BUS_URL"] = broker.url
        broker.start()
    yield request.param, server, broker or bus or SocketBus(tmp_path)
    if broker:
        broker.stop()


async def test_every_watcher_receives_all_stored_changes(
    proof_setup: tuple[str, MerganserServer, InterruptibleBus],
) -> None:
    kind, server, bus = proof_setup
    failures = FAILURES_BY_KIND[kind][1]
    result = await prove_change_stream(
        server, bus, ProofPlan(CHANGE_COUNT, SEED, failures, watchers_per_transport=2)
    )
    assert not result.differences, "\n".join([str(result), *result.differences])
    assert result.change_count >= CHANGE_COUNT
    assert result.ineffective_share >= 0.1
    assert {failure: result.operation_counts[failure] for failure in failures} == dict.fromkeys(
        failures, 1
    )
    assert all(watcher.event_count and watcher.connection_count > 1 for watcher in result.watchers)
