"""Measure the CPU cost of metrics, logs and traces per operation.

Usage: `python -m bench.scenarios.telemetry_cost`. One process does what `Schema.execute` does
around an empty inbox page, with two reads and one loader batch. The log goes into a pipe that
another process reads; traces go to a collector in another process. CPU is that of the whole
process, with the thread that sends traces; the median of several rounds, in rotation.
"""

import asyncio
import contextlib
import logging
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

from graphql import OperationType
from rich.console import Console
from rich.table import Table

from graph.execution import telemetry
from graph.execution.telemetry import Observed, Sampler
from merganser.server.observability import logs, otlp
from merganser.settings.settings import Settings
from models.observability.traces import Timed
from models.store.database import STORE
from models.users.roles import Role
from resolvers.context import BATCHES, LOADING, Viewer

ROUNDS, EACH = 9, 20_000
PAGE = 450.0  # µs of CPU
ALLOWED = 0.05 * PAGE
USUAL = 0.01
TEXT = "query InboxPage($id: ID!) { mailbox(id: $id) { id messages(first: 50) { nodes { id } } } }"


@dataclass(frozen=True)
class Known:
    """The properties of the document."""

    name: str = "InboxPage"
    kind: OperationType = OperationType.QUERY
    faults: tuple[object, ...] = ()


@dataclass
class Asked:
    """The properties of the request."""

    viewer: Viewer = field(default_factory=lambda: Viewer(1 << 60, Role.USER))
    request_id: str = "0123456789abcdef01234567"
    headers: dict[str, str] = field(default_factory=lambda: {"host": "localhost"})


def operation(asked: Asked, known: Known, result: object) -> None:
    """Observe an inbox page with two reads and a batch."""
    with Observed(asked, TEXT) as observed:
        observed.judged(known)
        observed.cost = 57
        for _ in range(2):
            with Timed(STORE, "store read", "read"):
                pass
        BATCHES.note(3, "mailboxes.loaders.by_ids")
        with Timed(LOADING, "load mailboxes.loaders.by_ids", "mailboxes.loaders.by_ids"):
            pass
        observed.sent = result


def bare(_asked: Asked, _known: Known, _result: object) -> None:
    """Do nothing, as the reference."""


def measured(work: Callable[[Asked, Known, object], None], many: int) -> float:
    """Return the µs of CPU of one operation."""
    asked, known, result = Asked(), Known(), SimpleNamespace(data={}, errors=None)
    began = time.process_time()
    for _ in range(many):
        work(asked, known, result)
    return (time.process_time() - began) / many * 1e6


@contextlib.contextmanager
def pipe() -> Generator[None]:
    """Redirect stderr into a pipe that another process reads, while the context is open."""
    before = os.dup(2)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:  # noqa: S607
        assert reader.stdin is not None  # noqa: S101 - for the type checker
        os.dup2(reader.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)


class Taking(BaseHTTPRequestHandler):
    """A trace collector that accepts everything."""

    def do_POST(self) -> None:
        """Accept traces."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def collector() -> Generator[str]:
    """Run a collector in a process of its own, and yield its URL."""
    command = [sys.executable, "-m", "bench.scenarios.telemetry_cost", "collector"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - a fixed command
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def bench() -> dict[str, float]:
    """Return the median µs per operation.

    Without telemetry, with metrics, with logs, with traces.
    """
    found: dict[str, list[float]] = {}
    with collector() as place, pipe():
        logs.set_up("INFO", "json")
        sender = otlp.TraceSender(Settings(otlp=place), otlp.described())
        for _ in range(ROUNDS):
            for name, level, share, work, many in (
                ("nothing", logging.WARNING, None, bare, EACH),
                ("meters", logging.WARNING, None, operation, EACH),
                ("meters and log", logging.INFO, None, operation, EACH),
                ("meters, log and traces", logging.INFO, USUAL, operation, EACH),
                ("every operation traced", logging.INFO, 1.0, operation, EACH // 20),
            ):
                logging.getLogger("graph.execution.telemetry").setLevel(level)
                telemetry.trace_to(None if share is None else Sampler(share, sender))
                found.setdefault(name, []).append(measured(work, many))
        await sender.close()
    return {name: statistics.median(values) for name, values in found.items()}


def shown(found: dict[str, float]) -> None:
    """Print the costs as a table, and whether they are within the limit."""
    table = Table("what is told", "µs of CPU", "of an inbox page of 450 µs")
    for name, value in found.items():
        more = value - found["nothing"]
        table.add_row(name, f"{more:.1f}", f"{more / PAGE:.1%}")
    Console(highlight=False).print(table)
    lost = logs.LOST.of()
    usual = found["meters, log and traces"] - found["nothing"]
    verdict = "within" if usual <= ALLOWED else "beyond"
    Console(highlight=False).print(f"As usual {usual:.1f} µs, {verdict} the {ALLOWED:g} allowed.")
    if lost:
        Console(highlight=False).print(f"{lost:g} lines of the log found no reader in time.")


if __name__ == "__main__":
    if sys.argv[1:] == ["collector"]:
        server = HTTPServer(("127.0.0.1", 0), Taking)
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
    random.seed(1)  # the same operations are traced in each run
    shown(asyncio.run(bench()))
