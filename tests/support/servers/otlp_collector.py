"""A collector of OTLP over HTTP that keeps the received spans and metrics."""

import gzip
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.time_limits import HANG_SECONDS


@dataclass(frozen=True)
class CollectedSpan:
    """A received span. Times are in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    started_at: int
    ended_at: int
    failed: bool
    attributes: dict[str, Any]


@dataclass
class OtlpCollector:
    """The received spans and metrics."""

    port: int = 0
    spans: list[CollectedSpan] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)  # the newest by name
    resources: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, find: Callable[[], Any]) -> Any:
        """Wait until a function returns something, and return it."""
        deadline = time.monotonic() + HANG_SECONDS
        while not (result := find()):
            assert time.monotonic() < deadline, "nothing was exported in time"
            time.sleep(0.02)
        return result

    def spans_of_trace(self, trace_id: str) -> list[CollectedSpan]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def add_export(self, path: str, body: bytes) -> None:
        self.raw.append(body)
        if path == "/v1/traces":
            self._spans(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.resources.append(_attribute_values(resource_metrics.resource.attributes))
                for scope in resource_metrics.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}

    def _spans(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            self.resources.append(_attribute_values(resource_spans.resource.attributes))
            for scope in resource_spans.scope_spans:
                self.spans += [
                    CollectedSpan(
                        span.name, span.trace_id.hex(), span.span_id.hex(),
                        span.parent_span_id.hex(), span.start_time_unix_nano,
                        span.end_time_unix_nano, span.status.code == span.status.STATUS_CODE_ERROR,
                        _attribute_values(span.attributes),
                    )
                    for span in scope.spans
                ]  # fmt: skip


def _attribute_values(pairs: Any) -> dict[str, Any]:
    values = {}
    for pair in pairs:
        value = getattr(pair.value, pair.value.WhichOneof("value"))
        is_list = hasattr(value, "values")
        values[pair.key] = [item.string_value for item in value.values] if is_list else value
    return values


@contextmanager
def run_otlp_collector() -> Generator[OtlpCollector]:
    """Run a collector on loopback."""
    collector = OtlpCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.headers.append({name.lower(): text for name, text in self.headers.items()})
            collector.add_export(self.path, body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
