"""Wake-up buses that a test can interrupt and restore."""

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
    """A bus that carries wake-ups between processes."""

    async def cut(self) -> None:
        """Interrupt the bus."""

    async def mend(self) -> None:
        """Restore the bus."""


@dataclass
class Broker:
    """A message broker that can be stopped and started."""

    command: Sequence[str]
    port: int
    url: str
    folder: Path
    patience: float = START
    children: bool = False
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        """Start the broker and wait until it listens. Raises RuntimeError after the timeout."""
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
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
        """Kill the broker, if it runs. One with child processes gets SIGTERM instead."""
        if self._process is not None:
            if self.children:
                self._process.terminate()
            else:
                self._process.kill()
            self._process.wait()
            self._process = None

    async def cut(self) -> None:
        """Stop the broker."""
        self.stop()

    async def mend(self) -> None:
        """Start the broker if it is stopped."""
        if self._process is None:
            self.start()


def redis(program: str, folder: Path) -> Broker:
    """Return a Redis without persistence, not started."""
    port = free_port()
    words = ("--bind", HOST, "--save", "", "--appendonly", "no")
    command = (program, "--port", str(port), *words)
    return Broker(command, port, f"redis://{HOST}:{port}", folder)


def nats(program: str, folder: Path) -> Broker:
    """Return a NATS server, not started."""
    port = free_port()
    command = (program, "-a", HOST, "-p", str(port))
    return Broker(command, port, f"nats://{HOST}:{port}", folder)


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of the processes of one machine, in the data folder."""

    data: Path

    async def cut(self) -> None:
        """Move the folder of the sockets away and delete the sockets."""
        away = self.data / "away"
        (self.data / "bells").rename(away)
        for path in away.iterdir():
            path.unlink()

    async def mend(self) -> None:
        """Move the folder back, unless a new process has created another."""
        away, bells = self.data / "away", self.data / "bells"
        if away.exists() and bells.exists():
            shutil.rmtree(away)
        elif away.exists():
            away.rename(bells)


@dataclass(frozen=True, slots=True)
class Notify:
    """LISTEN and NOTIFY of PostgreSQL."""

    store: str

    async def cut(self) -> None:
        """Terminate the connections that listen or notify."""
        connection = await asyncpg.connect(self.store.replace("+asyncpg", ""))
        await connection.execute(LISTENING)
        await connection.close()

    async def mend(self) -> None:
        """Do nothing: each process reconnects."""
