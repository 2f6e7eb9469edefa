"""Servers on which wake-ups go, for tests that stop and start them."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import brokers
from bench.brokers import Broker
from tests.whole import CI


def program(name: str, client: str) -> str:
    """Where the program is; skips the test where it, or its client, is not; but in CI fails."""
    found = shutil.which(name)
    if find_spec(client) is None and not CI:
        pytest.skip(f"there is no client for {name} here: pip install 'merganser[{client}]'")
    if found is None and not CI:
        pytest.skip(f"there is no {name} here")
    assert found, f"{name} is to be installed in CI: .ci/run"
    return found


def redis(folder: Path) -> Broker:
    return brokers.redis(program("redis-server", "redis"), folder)


def nats(folder: Path) -> Broker:
    return brokers.nats(program("nats-server", "nats"), folder)


BROKERS = {"redis": redis, "nats": nats}
