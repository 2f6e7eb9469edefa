"""The buses of wake-ups, which can be broken off and come back."""

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import asyncpg

from bench.servers.ports import HOST, free_port

START = 10.0  # seconds
LISTENING = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
AND datname = current_database() AND (query ILIKE 'listen %' OR query LIKE '%pg_notify%')"""


class Bus(Protocol):
    """What takes wake-ups from process to process."""

    async def cut(self) -> None:
        """Break it off."""

    async def mend(self) -> None:
        """Let it be there again."""


@dataclass
class Broker:
    """A server of another project, which can be stopped and started."""

    command: Sequence[str]
    port: int
    url: str
    folder: Path
    patience: float = START
    children: bool = False
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        """Run it until it listens. RuntimeError where it does not."""
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                self.command, cwd=self.folder, stdout=log, stderr=log
            )
        until = time.monotonic() + self.patience
        while True:
            try:
                socket.create_connection((HOST, self.port), 1).close()
            except OSError as problem:
                if time.monotonic() > until:
                    said = (self.folder / "broker.log").read_text()
                    raise RuntimeError(said) from problem
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Kill it; once more does nothing. One that has children is asked to end them."""
        if self._process is not None:
            if self.children:
                self._process.terminate()
            else:
                self._process.kill()
            self._process.wait()
            self._process = None

    async def cut(self) -> None:
        """Break it off."""
        self.stop()

    async def mend(self) -> None:
        """Let it be there again."""
        if self._process is None:
            self.start()


def redis(program: str, folder: Path) -> Broker:
    """A Redis that keeps nothing."""
    port = free_port()
    words = ("--bind", HOST, "--save", "", "--appendonly", "no")
    command = (program, "--port", str(port), *words)
    return Broker(command, port, f"redis://{HOST}:{port}", folder)


def nats(program: str, folder: Path) -> Broker:
    """A NATS server."""
    port = free_port()
    command = (program, "-a", HOST, "-p", str(port))
    return Broker(command, port, f"nats://{HOST}:{port}", folder)


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of processes on this machine, in the folder of a server's data."""

    data: Path

    async def cut(self) -> None:
        """Move the folder away, and empty it."""
        away = self.data / "away"
        (self.data / "bells").rename(away)
        for path in away.iterdir():
            path.unlink()

    async def mend(self) -> None:
        """Put the folder back, unless a process that began has made another."""
        away, bells = self.data / "away", self.data / "bells"
        if away.exists() and bells.exists():
            shutil.rmtree(away)
        elif away.exists():
            away.rename(bells)


@dataclass(frozen=True, slots=True)
class Notify:
    """LISTEN and NOTIFY of PostgreSQL, at the URL of a store."""

    store: str

    async def cut(self) -> None:
        """End the connections on which bells are heard or rung."""
        connection = await asyncpg.connect(self.store.replace("+asyncpg", ""))
        await connection.execute(LISTENING)
        await connection.close()

    async def mend(self) -> None:
        """Nothing: each process connects again."""
