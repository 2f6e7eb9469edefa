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
from graph.execution.telemetry import OperationObserver, TraceSampler
from merganser.server.observability import logs, otlp_exporters
from merganser.settings.settings import Settings
from models.observability.traces import TimedBlock
from models.store.database import DURATION
from models.users.roles import Role
from resolvers.context import BATCH_KEYS_METRIC, BATCH_SECONDS_METRIC
from resolvers.viewer import Viewer

ROUNDS, OPERATIONS_PER_ROUND = 9, 20_000
PAGE_CPU = 450.0  # µs of CPU
MAX_CPU = 0.05 * PAGE_CPU
SAMPLED_SHARE = 0.01
DOCUMENT = """query InboxPage($id: ID!) { mailbox(by: {id: $id}) {
  id messages(first: 50) { nodes { id } } } }"""


@dataclass(frozen=True)
class DocumentInfo:
    """The properties of the document."""

    operation_name: str = "InboxPage"
    operation_type: OperationType = OperationType.QUERY
    faults: tuple[object, ...] = ()


@dataclass
class RequestInfo:
    """The properties of the request."""

    viewer: Viewer = field(default_factory=lambda: Viewer(1 << 60, Role.USER))
    request_id: str = "0123456789abcdef01234567"
    headers: dict[str, str] = field(default_factory=lambda: {"host": "localhost"})


def run_observed_operation(request: RequestInfo, document: DocumentInfo, result: object) -> None:
    """Observe an inbox page with two reads and a batch."""
    with OperationObserver(request, DOCUMENT) as observed:
        observed.set_document_and_count_subscription(document)
        observed.cost = 57
        for _ in range(2):
            with TimedBlock(DURATION, "database read", "read"):
                pass
        BATCH_KEYS_METRIC.observe(3, "mailboxes.loaders.by_ids")
        with TimedBlock(
            BATCH_SECONDS_METRIC, "load mailboxes.loaders.by_ids", "mailboxes.loaders.by_ids"
        ):
            pass
        observed.result = result


def run_unobserved_operation(
    _request: RequestInfo, _document: DocumentInfo, _result: object
) -> None:
    """Do nothing, as the reference."""


def measure_cpu(
    operation: Callable[[RequestInfo, DocumentInfo, object], None], count: int
) -> float:
    """Return the µs of CPU of one operation."""
    request_info = RequestInfo()
    document_info = DocumentInfo()
    result = SimpleNamespace(data={}, errors=None)
    started_at = time.process_time()
    for _ in range(count):
        operation(request_info, document_info, result)
    return (time.process_time() - started_at) / count * 1e6


@contextlib.contextmanager
def stderr_into_pipe() -> Generator[None]:
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


class CollectorHandler(BaseHTTPRequestHandler):
    """A trace collector that accepts everything."""

    def do_POST(self) -> None:
        """Accept traces."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def run_collector() -> Generator[str]:
    """Run a collector in a process of its own, and yield its URL."""
    command = [sys.executable, "-m", "bench.scenarios.telemetry_cost", "collector"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - a fixed command
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def measure_all_levels() -> dict[str, float]:
    """Return the median µs per operation.

    Without telemetry, with metrics, with logs, with traces.
    """
    found: dict[str, list[float]] = {}
    with run_collector() as collector_url, stderr_into_pipe():
        logs.configure_logging("INFO", "json")
        sender = otlp_exporters.TraceExporter(
            Settings(otlp_endpoint=collector_url), otlp_exporters.service_resource()
        )
        for _ in range(ROUNDS):
            for name, level, share, measure, many in (
                ("none", logging.WARNING, None, run_unobserved_operation, OPERATIONS_PER_ROUND),
                ("metrics", logging.WARNING, None, run_observed_operation, OPERATIONS_PER_ROUND),
                (
                    "metrics and logs",
                    logging.INFO,
                    None,
                    run_observed_operation,
                    OPERATIONS_PER_ROUND,
                ),
                (
                    "metrics, logs and traces",
                    logging.INFO,
                    SAMPLED_SHARE,
                    run_observed_operation,
                    OPERATIONS_PER_ROUND,
                ),
                (
                    "all operations traced",
                    logging.INFO,
                    1.0,
                    run_observed_operation,
                    OPERATIONS_PER_ROUND // 20,
                ),
            ):
                logging.getLogger("graph.execution.telemetry").setLevel(level)
                telemetry.set_trace_sampler(None if share is None else TraceSampler(share, sender))
                found.setdefault(name, []).append(measure_cpu(measure, many))
        await sender.close()
    return {name: statistics.median(values) for name, values in found.items()}


def print_report(cpu_by_level: dict[str, float]) -> None:
    """Print the costs as a table, and whether they are within the limit."""
    table = Table("telemetry", "additional µs of CPU", "share of an inbox page of 450 µs")
    for name, value in cpu_by_level.items():
        extra_cpu = value - cpu_by_level["none"]
        table.add_row(name, f"{extra_cpu:.1f}", f"{extra_cpu / PAGE_CPU:.1%}")
    Console(highlight=False).print(table)
    lost_lines = logs.LINES_LOST.value()
    usual = cpu_by_level["metrics, logs and traces"] - cpu_by_level["none"]
    verdict = "within" if usual <= MAX_CPU else "above"
    Console(highlight=False).print(
        f"With the default settings: {usual:.1f} µs, {verdict} the limit of {MAX_CPU:g} µs."
    )
    if lost_lines:
        Console(highlight=False).print(
            f"{lost_lines:g} log lines were dropped, because they were not read in time."
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["collector"]:
        server = HTTPServer(("127.0.0.1", 0), CollectorHandler)
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
    random.seed(1)  # the same operations are traced in each run
    print_report(asyncio.run(measure_all_levels()))
