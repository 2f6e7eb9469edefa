"""Processes of programs that listen on a port, such as reverse proxies."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.required_programs import PROGRAM_PATH
from tests.support.run_scope import CI

BUSY_MACHINE_SECONDS = 120.0


@contextlib.contextmanager
def running_program(
    command: list[str],
    port: int,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    *,
    address: str = "127.0.0.1",
) -> Iterator[None]:
    """Run a program until the end of the block; wait until it accepts connections.

    `env` adds variables to the environment.
    """
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [program_path(command[0]), *command[1:]],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
    try:
        deadline = time.monotonic() + BUSY_MACHINE_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address, port), 5):
                break
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)


def program_path(name: str) -> str:
    """Return the path of a program, also of one that is not in the PATH of all users."""
    return shutil.which(name, path=PROGRAM_PATH) or name


def require_program(name: str) -> None:
    """Skip the test if a program is missing; in CI it must be there."""
    if not CI and shutil.which(name, path=PROGRAM_PATH) is None:
        pytest.skip(f"{name} is not installed")
