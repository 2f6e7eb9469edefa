"""A server with metrics, traces and logs, and a collector that receives them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.support.clients.plain_http import plain_blocking_client
from tests.support.servers.merganser_server import START_TIMEOUT, MerganserProcess
from tests.support.servers.metric_samples import MetricSamples, parse_metrics
from tests.support.servers.otlp_collector import OtlpCollector, run_otlp_collector
from tests.support.time_limits import HANG_SECONDS

METRICS_KEY = "a key for metrics only"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
SECRET = "Xylophones and quinces"  # noqa: S105 - it is sent, and must not be in logs, metrics or traces


@dataclass
class ObservedServer(MerganserProcess):
    """A server with settings of OpenTelemetry."""

    otel_settings: dict[str, str] = field(default_factory=dict)

    @property
    def process_env(self) -> dict[str, str]:
        return {
            **super().process_env,
            **{f"OTEL_{name}": text for name, text in self.otel_settings.items()},
        }

    def wait_for_exit(self) -> int:
        """Wait for the end of the process and return its exit code."""
        assert self._process
        return self._process.wait(START_TIMEOUT)

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def scrape(self, **headers: str) -> httpx.Response:
        """Read the metrics with the key and as if through a proxy, unless the headers differ."""
        request_headers = {
            "Authorization": f"Bearer {METRICS_KEY}",
            "Accept": OPENMETRICS,
            "Via": "1.1 proxy",
            **headers,
        }
        return self.get("/metrics", **request_headers)

    def read_metrics(self) -> MetricSamples:
        return parse_metrics(self.scrape().text)

    def query(self, document: str, username: str | None = "ada", **extra: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets[username]}"} if username else {}
        headers |= extra.pop("headers", {})
        body = {"query": document, **extra}
        with self._open_http() as http:
            return http.post("/graphql", json=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Read a path over a new connection."""
        with self._open_http() as http:
            return http.get(path, headers=headers)

    def _open_http(self) -> httpx.Client:
        return plain_blocking_client(base_url=self.url, timeout=HANG_SECONDS)

    def log_lines_with(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines with these fields."""
        return [line for line in self.log_records() if fields.items() <= line.items()]


def wait_until(condition: Callable[[], Any], seconds: float = HANG_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
    return result


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with run_otlp_collector() as running_collector:
        yield running_collector


@pytest.fixture(scope="module")
def observed_server(
    tmp_path_factory: pytest.TempPathFactory, collector: OtlpCollector
) -> Iterator[ObservedServer]:
    """A server that traces only requests with a traceparent, and exports quickly.

    The last tests break it and stop it.
    """
    settings = {
        "METRICS_ACCESS": "loopback",
        "METRICS_KEY": METRICS_KEY,
        "OTLP_ENDPOINT": collector.url,
        "TRACE_SAMPLE_RATIO": "0",
        "SHUTDOWN_DRAIN": "1 min",
    }
    otel_settings = {
        "BSP_SCHEDULE_DELAY": "50",
        "METRIC_EXPORT_INTERVAL": "300",
        "EXPORTER_OTLP_HEADERS": "x-tenant=ours",
    }
    server = ObservedServer(
        tmp_path_factory.mktemp("watched"), extra_settings=settings, otel_settings=otel_settings
    )
    server.create_users("ada", "bob")
    server.start()
    yield server
    server.kill()
