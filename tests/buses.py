"""Servers on which wake-ups go, for tests that stop and start them."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

START = 10.0  # seconds


def program(name: str, client: str) -> str:
    """Where the program is; skips the test where it, or its client, is not; but in CI fails."""
    found = shutil.which(name)
    if find_spec(client) is None and "CI" not in os.environ:
        pytest.skip(f"there is no client for {name} here: pip install 'merganser[{client}]'")
    if found is None and "CI" not in os.environ:
        pytest.skip(f"there is no {name} here")
    assert found, f"{name} is to be installed in CI: .ci/run"
    return found


@dataclass
class Broker:
    """A server of another project, which can be stopped and started."""

    command: Sequence[str]
    port: int
    url: str
    folder: Path
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        until = time.monotonic() + START
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < until, (self.folder / "broker.log").read_text()
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis(folder: Path) -> Broker:
    port = free_port()
    words = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command = [program("redis-server", "redis"), "--port", str(port), *words]
    return Broker(command, port, f"redis://127.0.0.1:{port}", folder)


def nats(folder: Path) -> Broker:
    port = free_port()
    command = [program("nats-server", "nats"), "-a", "127.0.0.1", "-p", str(port)]
    return Broker(command, port, f"nats://127.0.0.1:{port}", folder)


BROKERS = {"redis": redis, "nats": nats}
