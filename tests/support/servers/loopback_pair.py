"""Two loopback addresses for servers that check the address of their clients, such as by SPF."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.servers.ports import free_port
from tests.support.run_scope import CI
from tests.support.servers.program_process import program_path, require_program


def require_local_routes() -> None:
    """Skip the test if it can't change routes, but fail in CI, which runs as root."""
    require_program("ip")
    if os.geteuid() != 0 and not CI:
        pytest.skip("only root can add routes, and listen on port 25")


@contextmanager
def connected_loopback_addresses() -> Iterator[tuple[str, str]]:
    """Yield two loopback addresses. Connections to one of them come from the other.

    Without these routes, the source of every connection to loopback is 127.0.0.1.
    """
    high, low = divmod(free_port(), 256)  # no other test has the port, so none has the addresses
    first, second = f"127.{high}.{low}.1", f"127.{high}.{low}.2"
    routes = [
        ["local", target, "dev", "lo", "table", "local", "src", source]
        for target, source in ((first, second), (second, first))
    ]
    added_routes = []
    try:
        for route in routes:
            subprocess.run([program_path("ip"), "route", "add", *route], check=True)
            added_routes.append(route)
        yield first, second
    finally:
        for route in added_routes:
            subprocess.run([program_path("ip"), "route", "del", *route], check=True)
