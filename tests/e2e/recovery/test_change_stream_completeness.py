"""Whoever follows an account knows what is in its store, whatever breaks: the short form."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.change_stream.change_stream_proof import ProofPlan, prove_change_stream
from bench.servers.bus_servers import InterruptibleBus, PostgresNotifyBus, SocketBus
from bench.servers.merganser_process import MerganserServer
from tests.support.run_scope import ALL
from tests.support.servers.bus_servers import BROKERS
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

CHANGES = 300 if ALL else 150
SEED = 7
KINDS = {  # by store and number of processes: the bus, and what goes wrong
    "sqlite-1": ("", ("cut", "kill", "mend", "trim")),
    "sqlite-2": ("redis", ("cut", "one", "mend", "first")),
    "postgres-1": ("", ("cut", "kill", "mend", "trim")),
    "postgres-2": ("nats", ("cut", "one", "mend", "kill")),
}


def kinds() -> list[str]:
    return [kind for kind in KINDS if kind.partition("-")[0] in store_fixtures.STORES]


@pytest.fixture(params=kinds())
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[str, MerganserServer, InterruptibleBus]]:
    store, bus = None, None
    if request.param.startswith("postgres"):
        store = create_database(request.getfixturevalue("postgres"), "proof")
        bus = PostgresNotifyBus(store)
    server = MerganserServer(
        tmp_path, store, ("--workers", "2") if request.param.endswith("2") else ()
    )
    broker = BROKERS[name](tmp_path) if (name := KINDS[request.param][0]) else None
    if broker:
        server.extra_environment["MERGANSER_WAKEUPS"] = broker.url
        broker.start()
    yield request.param, server, broker or bus or SocketBus(tmp_path)
    if broker:
        broker.stop()


async def test_every_watcher_knows_in_the_end_what_is_stored(
    stage: tuple[str, MerganserServer, InterruptibleBus],
) -> None:
    kind, server, bus = stage
    acts = KINDS[kind][1]
    verdict = await prove_change_stream(
        server, bus, ProofPlan(CHANGES, SEED, acts, watchers_per_transport=2)
    )
    assert not verdict.differences, "\n".join([str(verdict), *verdict.differences])
    assert verdict.change_count >= CHANGES
    assert verdict.ineffective_share >= 0.1
    assert {act: verdict.operation_counts[act] for act in acts} == dict.fromkeys(acts, 1)
    assert all(one.event_count and one.connection_count > 1 for one in verdict.watchers)
