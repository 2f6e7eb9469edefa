"""A collector of traces and metrics: takes OTLP over HTTP, and remembers what came."""

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

PATIENCE = 10.0


@dataclass(frozen=True)
class Span:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    failed: bool
    facts: dict[str, Any]


@dataclass
class Collector:
    """What has come so far."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)  # the newest of each name
    resources: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, for_: Callable[[], Any]) -> Any:
        """What comes, once it is there."""
        until = time.monotonic() + PATIENCE
        while not (found := for_()):
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.02)
        return found

    def trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def take(self, path: str, body: bytes) -> None:
        self.raw.append(body)
        if path == "/v1/traces":
            self._spans(ExportTraceServiceRequest.FromString(body))
        elif path == "/v1/metrics":
            for sent in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.resources.append(_facts(sent.resource.attributes))
                for scope in sent.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}

    def _spans(self, request: ExportTraceServiceRequest) -> None:
        for sent in request.resource_spans:
            self.resources.append(_facts(sent.resource.attributes))
            for scope in sent.scope_spans:
                self.spans += [
                    Span(
                        each.name, each.trace_id.hex(), each.span_id.hex(),
                        each.parent_span_id.hex(), each.start_time_unix_nano,
                        each.end_time_unix_nano, each.status.code == each.status.STATUS_CODE_ERROR,
                        _facts(each.attributes),
                    )
                    for each in scope.spans
                ]  # fmt: skip


def _facts(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        value = getattr(pair.value, pair.value.WhichOneof("value"))
        listed = hasattr(value, "values")
        found[pair.key] = [one.string_value for one in value.values] if listed else value
    return found


@contextmanager
def collecting() -> Generator[Collector]:
    """A collector that listens on the loopback."""
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            made.headers.append({name.lower(): text for name, text in self.headers.items()})
            made.take(self.path, body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
