"""Servers on which wake-ups go, for tests that stop and start them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.servers import bus_servers
from bench.servers.bus_servers import BrokerProcess
from tests.support.run_scope import CI


def program(name: str, client: str) -> str:
    """Where the program is; skips the test where it, or its client, is not; but in CI fails."""
    found = shutil.which(name)
    if find_spec(client) is None and not CI:
        pytest.skip(f"there is no client for {name} here: pip install 'merganser[{client}]'")
    if found is None and not CI:
        pytest.skip(f"there is no {name} here")
    assert found, f"{name} is to be installed in CI: .ci/run"
    return found


def redis(folder: Path) -> BrokerProcess:
    return bus_servers.redis_broker(program("redis-server", "redis"), folder)


def nats(folder: Path) -> BrokerProcess:
    return bus_servers.nats_broker(program("nats-server", "nats"), folder)


BROKERS = {"redis": redis, "nats": nats}
