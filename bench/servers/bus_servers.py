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

START_TIMEOUT = 10.0  # seconds
TERMINATE_BUS_CONNECTIONS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database()
AND (query ILIKE 'listen %' OR query LIKE '%pg_notify%')"""


class InterruptibleBus(Protocol):
    """A bus that carries wake-ups between processes."""

    async def interrupt(self) -> None:
        """Interrupt the bus."""

    async def restore(self) -> None:
        """Restore the bus."""


@dataclass
class BrokerProcess:
    """A message broker that can be stopped and started."""

    command: Sequence[str]
    port: int
    url: str
    folder: Path
    start_timeout: float = START_TIMEOUT
    has_children: bool = False
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        """Start the broker and wait until it listens. Raises RuntimeError after the timeout."""
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                self.command, cwd=self.folder, stdout=log, stderr=log
            )
        until = time.monotonic() + self.start_timeout
        while True:
            try:
                socket.create_connection((HOST, self.port), 1).close()
            except OSError as problem:
                if time.monotonic() > until:
                    log_text = (self.folder / "broker.log").read_text()
                    raise RuntimeError(log_text) from problem
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Kill the broker, if it runs. One with child processes gets SIGTERM instead."""
        if self._process is not None:
            if self.has_children:
                self._process.terminate()
            else:
                self._process.kill()
            self._process.wait()
            self._process = None

    async def interrupt(self) -> None:
        """Stop the broker."""
        self.stop()

    async def restore(self) -> None:
        """Start the broker if it is stopped."""
        if self._process is None:
            self.start()


def redis_broker(program: str, folder: Path) -> BrokerProcess:
    """Return a Redis without persistence, not started."""
    port = free_port()
    arguments = ("--bind", HOST, "--save", "", "--appendonly", "no")
    command = (program, "--port", str(port), *arguments)
    return BrokerProcess(command, port, f"redis://{HOST}:{port}", folder)


def nats_broker(program: str, folder: Path) -> BrokerProcess:
    """Return a NATS server, not started."""
    port = free_port()
    command = (program, "-a", HOST, "-p", str(port))
    return BrokerProcess(command, port, f"nats://{HOST}:{port}", folder)


@dataclass(frozen=True, slots=True)
class SocketBus:
    """The sockets of the processes of one machine, in the data folder."""

    data_folder: Path

    async def interrupt(self) -> None:
        """Move the folder of the sockets away and delete the sockets."""
        parked_folder = self.data_folder / "away"
        (self.data_folder / "bells").rename(parked_folder)
        for path in parked_folder.iterdir():
            path.unlink()

    async def restore(self) -> None:
        """Move the folder back, unless a new process has created another."""
        parked_folder, marks_folder = self.data_folder / "away", self.data_folder / "bells"
        if parked_folder.exists() and marks_folder.exists():
            shutil.rmtree(parked_folder)
        elif parked_folder.exists():
            parked_folder.rename(marks_folder)


@dataclass(frozen=True, slots=True)
class PostgresNotifyBus:
    """LISTEN and NOTIFY of PostgreSQL."""

    database_url: str

    async def interrupt(self) -> None:
        """Terminate the connections that listen or notify."""
        connection = await asyncpg.connect(self.database_url.replace("+asyncpg", ""))
        await connection.execute(TERMINATE_BUS_CONNECTIONS)
        await connection.close()

    async def restore(self) -> None:
        """Do nothing: each process reconnects."""
