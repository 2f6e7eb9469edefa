"""Redis and NATS servers for the event bus, for tests that stop and start them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.servers import bus_servers
from bench.servers.bus_servers import BrokerProcess
from tests.support.run_scope import CI


def require_program(name: str, client: str) -> str:
    """Return the path of a program.

    Skips the test if the program or its Python client is missing, but fails in CI.
    """
    path = shutil.which(name)
    if find_spec(client) is None and not CI:
        pytest.skip(f"there is no client for {name} here: pip install 'merganser[{client}]'")
    if path is None and not CI:
        pytest.skip(f"there is no {name} here")
    assert path, f"{name} is to be installed in CI: .ci/run"
    return path


def make_redis_process(folder: Path) -> BrokerProcess:
    """Make a Redis server process."""
    return bus_servers.redis_broker(require_program("redis-server", "redis"), folder)


def make_nats_process(folder: Path) -> BrokerProcess:
    """Make a NATS server process."""
    return bus_servers.nats_broker(require_program("nats-server", "nats"), folder)


BROKERS = {"redis": make_redis_process, "nats": make_nats_process}
