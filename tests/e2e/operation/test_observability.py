"""Tests of metrics, traces, logs and health of a server, and that they contain no secrets."""

import asyncio
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older

from graph.app import create_app
from merganser.errors import CommandError
from merganser.server import http_server
from merganser.server.observability import otlp
from merganser.server.shutdown import GracefulShutdown
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from tests.support.servers.merganser_server import (
    OTHER_PASSWORD,
    PASSWORD,
    ROOT,
    START_TIMEOUT,
    MerganserProcess,
)
from tests.support.servers.metric_samples import MetricSamples, metric_value, parse_metrics
from tests.support.servers.otlp_collector import OtlpCollector, run_otlp_collector

COLLECTOR = "http://127.0.0.1:4318"
METRICS_KEY = "a key for metrics only"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
WORKER_METRIC = ("merganser_worker_up", "worker ")  # exists only with several processes
SECRET = "Xylophones and quinces"  # noqa: S105 - it is sent, and must not be in logs, metrics or traces
SIGN_IN = (
    "mutation SignIn($i: AuthenticateInput!) { authenticate(input: $i) { token errors { code } } }"
)


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
        return httpx.get(f"{self.url}/metrics", headers=request_headers, timeout=15)

    def read_metrics(self) -> MetricSamples:
        return parse_metrics(self.scrape().text)

    def query(self, document: str, username: str | None = "ada", **extra: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets[username]}"} if username else {}
        headers |= extra.pop("headers", {})
        body = {"query": document, **extra}
        return httpx.post(f"{self.url}/graphql", json=body, headers=headers, timeout=15)

    def log_lines_with(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines with these fields."""
        return [line for line in self.log_records() if fields.items() <= line.items()]


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> Any:
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


def test_metrics_need_key_or_privileged_credential(observed_server: ObservedServer) -> None:
    def status(credential: str) -> int:
        return observed_server.scrape(Authorization=credential).status_code

    assert status("") == status("Bearer nobody") == status(f"Basic {METRICS_KEY}") == 401
    assert (
        status(f"Bearer {METRICS_KEY}x")
        == status(f"Bearer {METRICS_KEY[:-1]}")
        == status("Bearer")
        == 401
    )
    assert status(f"Bearer {observed_server.secrets['ada']}") == 403
    assert (
        status(f"Bearer {observed_server.secrets['root']}")
        == status(f"bearer {METRICS_KEY}")
        == 200
    )
    assert observed_server.query(
        "{ viewer { role } }", None, headers={"Authorization": f"Bearer {METRICS_KEY}"}
    ).json()["errors"]


def test_both_metric_formats_are_parsed(observed_server: ObservedServer) -> None:
    openmetrics_response, text_response = (
        observed_server.scrape(),
        observed_server.scrape(Accept="*/*"),
    )
    assert openmetrics_response.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    assert text_response.headers["content-type"].startswith("text/plain; version=0.0.4")
    openmetrics_samples, text_samples = (
        parse_metrics(openmetrics_response.text),
        parse_metrics(text_response.text, older),
    )
    assert openmetrics_samples.keys() <= text_samples.keys() | {
        key for key in openmetrics_samples if "_http_" in key[0]
    }
    assert metric_value(openmetrics_samples, "merganser_store_up") == 1
    assert metric_value(openmetrics_samples, "process_resident_memory_bytes") > 10 << 20
    assert metric_value(openmetrics_samples, "process_start_time_seconds") == pytest.approx(
        time.time(), abs=600
    )
    (build,) = [key for key in openmetrics_samples if key[0] == "merganser_build_info"]
    assert ("store", "sqlite") in build[1]


def test_operations_are_counted_by_name_code_and_cost(observed_server: ObservedServer) -> None:
    metrics_before = observed_server.read_metrics()
    for _ in range(3):
        observed_server.query("query Who { viewer { user { username } } }")
    observed_server.query("{ viewer { role } }")
    observed_server.query("query Wrong { nope }")
    observed_server.query('query Gone { node(id: "u_x") { id } }')
    metrics_after = observed_server.read_metrics()

    def increase(name: str, **labels: str) -> float:
        return metric_value(metrics_after, name, **labels) - metric_value(
            metrics_before, name, **labels
        )

    seconds = "merganser_operation_seconds_count"
    assert increase(seconds, operation="Who", kind="query") == 3
    assert increase(seconds, operation="anonymous", kind="query") == 1
    assert increase(seconds, operation="refused", kind="none") == 1
    assert increase("merganser_operation_cost_total", operation="Who") >= 3
    errors = "merganser_operation_errors_total"
    assert increase(errors, operation="refused", code="GRAPHQL_VALIDATION_FAILED") == 1
    assert increase(errors, operation="Gone", code="BAD_ID") == 1
    assert not any(("operation", "Wrong") in labels for _, labels in metrics_after)
    assert increase("merganser_document_lookups_total", result="hit") >= 2
    assert (
        sum(increase("merganser_store_seconds_count", work=work) for work in ("read", "find")) >= 1
    )
    assert increase("merganser_http_responses_total", endpoint="graphql", status="200") >= 5


def test_documentation_lists_all_metrics(observed_server: ObservedServer) -> None:
    docs = (ROOT / "docs" / "operating.md").read_text()
    documented = set(re.findall(r"^\| `(merganser_\w+)` \| ([\w, ]*) ?\|", docs, re.MULTILINE))
    documented.discard(WORKER_METRIC)
    parse: Callable[[str], Any] = openmetrics
    families = {family.name: family for family in parse(observed_server.scrape().text)}
    assert {name for name, _ in documented} == {
        name for name in families if name.startswith("merganser_")
    }
    for name, labels in documented:
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(filter(None, labels.strip().split(", ")))


async def test_number_of_operation_labels_is_limited(observed_server: ObservedServer) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        for start in range(0, 120, 20):
            requests = [
                http.post(
                    f"{observed_server.url}/graphql",
                    json={"query": f"query Flood{number} {{ __typename }}"},
                )
                for number in range(start, start + 20)
            ]
            await asyncio.gather(*requests)
    metrics = observed_server.read_metrics()
    labels = {dict(key[1]).get("operation", "") for key in metrics}
    assert 0 < len([label for label in labels if label.startswith("Flood")]) <= 50
    count = "merganser_operation_seconds_count"
    assert metric_value(metrics, count, operation="other", kind="query") >= 70
    observed_server.query("query AfterTheFlood { viewer { role } }")
    assert (
        metric_value(observed_server.read_metrics(), count, operation="AfterTheFlood", kind="query")
        == 1
    )


def test_operation_is_one_log_line(observed_server: ObservedServer) -> None:
    headers = {"X-Request-Id": "line-of-the-log"}
    observed_server.query("query Line { viewer { role } }", headers=headers)
    (line,) = observed_server.log_lines_with(request_id="line-of-the-log")
    assert (line["event"], line["level"], line["kind"]) == ("operation", "info", "query")
    assert (line["operation"], line["status"], line["cost"]) == ("Line", "ok", 1)
    assert 0 < line["ms"] < 10_000
    assert isinstance(line["user"], int)
    assert "codes" not in line
    observed_server.query(
        "query Line($a: Int!) { viewer { role } }", headers={"X-Request-Id": "refused-one"}
    )
    (line,) = observed_server.log_lines_with(request_id="refused-one")
    assert line["status"] == "refused"
    assert line["codes"]


def query_with_trace(
    observed_server: ObservedServer,
    document: str,
    username: str | None,
    trace_id: str,
    **extra: Any,
) -> None:
    trace_header = {"traceparent": f"00-{trace_id}-{SPAN}-01"}
    observed_server.query(document, username, headers=trace_header, **extra)


def test_operation_is_traced_if_caller_sends_traceparent(
    observed_server: ObservedServer, collector: OtlpCollector
) -> None:
    document = "query Traced { viewer { user { username mailboxes { path } } } }"
    query_with_trace(observed_server, document, "ada", TRACE)
    operation_span = collector.wait_for(
        lambda: [
            candidate
            for candidate in collector.spans_of_trace(TRACE)
            if candidate.parent_id == SPAN
        ]
    )[0]
    assert (operation_span.name, operation_span.failed) == ("query Traced", False)
    assert operation_span.attributes["graphql.operation.name"] == "Traced"
    assert operation_span.attributes["graphql.document.hash"].startswith("sha256:")
    assert operation_span.attributes["merganser.cost"] > 0
    child_spans = [
        span for span in collector.spans_of_trace(TRACE) if span.parent_id == operation_span.span_id
    ]
    names = {child.name for child in child_spans}
    assert "load users.loaders.load_visible_users_by_id" in names
    assert names & {"store read", "store find"}
    assert all(
        operation_span.started_at <= child.started_at <= child.ended_at <= operation_span.ended_at
        for child in child_spans
    )
    assert len(collector.spans_of_trace(TRACE)) == len(child_spans) + 1
    assert collector.resources[-1]["service.name"] == "merganser"
    assert collector.headers[-1]["x-tenant"] == "ours"


def test_trace_has_error_codes_and_needs_credential(
    observed_server: ObservedServer, collector: OtlpCollector
) -> None:
    anonymous_trace, known_trace = "1" * 32, "2" * 32
    query_with_trace(observed_server, "query Strange { viewer { role } }", None, anonymous_trace)
    query_with_trace(observed_server, 'query Known { node(id: "u_x") { id } }', "ada", known_trace)
    (span,) = collector.wait_for(
        lambda: [
            candidate
            for candidate in collector.spans_of_trace(known_trace)
            if candidate.parent_id == SPAN
        ]
    )
    assert span.attributes["merganser.codes"] == ["BAD_ID"]
    assert not collector.spans_of_trace(anonymous_trace)


def test_metrics_are_exported_to_collector(
    observed_server: ObservedServer, collector: OtlpCollector
) -> None:
    observed_server.query("query Sent { viewer { role } }")

    def count() -> int:
        metric = collector.metrics.get("merganser_operation_seconds")
        points = metric.histogram.data_points if metric else ()
        return sum(
            point.count
            for point in points
            if any(pair.value.string_value == "Sent" for pair in point.attributes)
        )

    assert collector.wait_for(count) == 1
    cost = collector.metrics["merganser_operation_cost"].sum
    assert cost.is_monotonic
    assert (
        cost.aggregation_temporality
        == cost.DESCRIPTOR.fields_by_name["aggregation_temporality"]
        .enum_type.values_by_name["AGGREGATION_TEMPORALITY_CUMULATIVE"]
        .number
    )
    assert collector.metrics["process_resident_memory_bytes"].unit == "By"


async def test_deliveries_and_subscriptions_are_counted(observed_server: ObservedServer) -> None:
    metrics_before = observed_server.read_metrics()
    raw = f"From: carol@example.com\r\nSubject: {SECRET}\r\n\r\n{SECRET}\r\n".encode()
    document = "subscription Listen { changes { cursor events { type } } }"
    async with observed_server.open_websocket(observed_server.secrets["ada"]) as socket:
        await socket.subscribe(document)
        await asyncio.sleep(0.1)
        assert "250" in await observed_server.deliver_by_lmtp(raw, "ada@example.org")
        await socket.read_changes()
        metrics_during = observed_server.read_metrics()
        assert (
            metric_value(metrics_during, "merganser_sockets")
            == metric_value(metrics_during, "merganser_subscriptions")
            == 1
        )
    lmtp_client = await observed_server.connect_lmtp()
    assert "250" in await lmtp_client.run_command("MAIL FROM:<>")
    assert "550" in await lmtp_client.run_command("RCPT TO:<nobody@example.org>")
    await lmtp_client.close()
    wait_until(lambda: metric_value(observed_server.read_metrics(), "merganser_sockets") == 0)
    metrics_after = observed_server.read_metrics()
    delivered = metric_value(metrics_after, "merganser_lmtp_recipients_total", outcome="delivered")
    assert (
        delivered
        - metric_value(metrics_before, "merganser_lmtp_recipients_total", outcome="delivered")
        == 1
    )
    assert metric_value(metrics_after, "merganser_lmtp_recipients_total", outcome="refused") == 1
    assert metric_value(metrics_after, "merganser_change_lag_seconds_count") >= 1
    (line,) = observed_server.log_lines_with(operation="Listen")
    assert (line["kind"], line["status"]) == ("subscription", "ok")
    assert line["events"] >= 1


def test_logs_metrics_and_traces_contain_no_secrets_or_mail(
    observed_server: ObservedServer, collector: OtlpCollector
) -> None:
    trace_id = "3" * 32
    wrong_credentials = {"username": "ada", "password": OTHER_PASSWORD}
    valid_credentials = {"username": "ada", "password": PASSWORD, "token": True}
    query_with_trace(observed_server, SIGN_IN, "ada", trace_id, variables={"i": wrong_credentials})
    result = observed_server.query(SIGN_IN, None, variables={"i": valid_credentials}).json()
    token = result["data"]["authenticate"]["token"]
    query_with_trace(
        observed_server, f'query Literal {{ node(id: "{SECRET}") {{ id }} }}', "ada", "4" * 32
    )
    observed_server.query("query Odd { viewer { role } }", operationName=SECRET)
    observed_server.query(f'query {{ nope(it: "{SECRET}") }}', variables={SECRET: SECRET})
    observed_server.query(
        "{ viewer { role } }", None, headers={"Authorization": f"Bearer {token}x"}
    )
    collector.wait_for(
        lambda: collector.spans_of_trace(trace_id) and collector.spans_of_trace("4" * 32)
    )
    all_output = (
        observed_server.log.encode() + observed_server.scrape().content + b"".join(collector.raw)
    )
    secrets = [
        SECRET,
        PASSWORD,
        OTHER_PASSWORD,
        token,
        METRICS_KEY,
        *observed_server.secrets.values(),
        "nope",
    ]
    for secret in secrets:
        assert secret.encode() not in all_output
    assert b"ada@example.org" not in all_output
    assert b"127.0.0.1" not in b"".join(collector.raw)
    assert (
        metric_value(observed_server.read_metrics(), "merganser_sign_ins_total", result="failed")
        >= 1
    )


def readiness(server: ObservedServer) -> tuple[int, list[str]]:
    """Return the status and the components that are not ready."""
    response = httpx.get(f"{server.url}/health/ready", timeout=15)
    components = response.json()["components"]
    assert set(components) == {"store", "migrations", "workers", "spool", "serving"}
    return response.status_code, [name for name, state in components.items() if state != "ok"]


def test_metrics_are_readable_from_loopback_without_proxy(observed_server: ObservedServer) -> None:
    local = httpx.get(f"{observed_server.url}/metrics", timeout=15)
    assert local.status_code == 200
    for name in ("Via", "Forwarded", "X-Forwarded-For", "X-Real-IP"):
        proxied = httpx.get(
            f"{observed_server.url}/metrics", headers={name: "127.0.0.1"}, timeout=15
        )
        assert proxied.status_code == 401


def test_request_id_of_error_identifies_its_log_lines(observed_server: ObservedServer) -> None:
    connection = sqlite3.connect(observed_server.folder / "var" / "merganser.db")
    with connection:
        connection.execute("ALTER TABLE addresses RENAME TO hidden")
    result = observed_server.query(
        "query Broken { viewer { user { addresses { nodes { id } } } } }"
    ).json()
    with connection:
        connection.execute("ALTER TABLE hidden RENAME TO addresses")
    connection.close()
    (error,) = result["errors"]
    request_id = error["extensions"]["requestId"]
    assert error["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    lines = observed_server.log_lines_with(request_id=request_id)
    assert [line["level"] for line in lines] == ["error", "info"]
    assert "no such table" in lines[0]["traceback"]
    assert (lines[1]["operation"], lines[1]["status"]) == ("Broken", "failed")
    assert lines[1]["codes"] == ["INTERNAL_SERVER_ERROR"]


def test_readiness_names_components_that_fail(observed_server: ObservedServer) -> None:
    assert readiness(observed_server) == (200, [])
    assert httpx.get(f"{observed_server.url}/health", timeout=30).json() == {"status": "ok"}
    spool = observed_server.folder / "var" / "spool" / "http"
    connection = sqlite3.connect(observed_server.folder / "var" / "merganser.db")
    (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = 'newer'")
    spool.rename(spool.with_name("away"))
    wait_until(lambda: readiness(observed_server) == (503, ["migrations", "spool"]))
    assert httpx.get(f"{observed_server.url}/health/live", timeout=30).json() == {"status": "ok"}
    assert httpx.get(f"{observed_server.url}/health", timeout=30).status_code == 200
    spool.with_name("away").rename(spool)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
    connection.close()
    wait_until(lambda: readiness(observed_server) == (200, []))
    assert len(observed_server.log_lines_with(event="not well", component="spool")) == 1
    assert len(observed_server.log_lines_with(event="well again", component="spool")) == 1


def test_draining_server_is_not_ready_but_answers_until_second_signal(
    observed_server: ObservedServer,
) -> None:
    os.kill(observed_server.pid, signal.SIGTERM)
    wait_until(lambda: readiness(observed_server) == (503, ["serving"]))
    assert observed_server.query("{ viewer { role } }").status_code == 200
    assert observed_server.log_lines_with(event="draining", seconds=60.0)
    os.kill(observed_server.pid, signal.SIGTERM)
    assert observed_server.wait_for_exit() == 0


async def test_drain_ends_after_its_time_limit(environment: Environment, tmp_path: Path) -> None:
    app = create_app(environment, spool_folder=tmp_path)
    web_server = http_server.create_http_server(app, Settings())
    shutdown = GracefulShutdown(0.1, http_server=web_server)
    shutdown.handle_signal(signal.SIGINT)
    assert shutdown.is_requested
    assert not web_server.should_exit
    await asyncio.sleep(0.3)
    assert web_server.should_exit
    assert not web_server.force_exit  # current requests can still finish


def test_otlp_without_packages_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    assert otlp.enabled_signals(Settings()) == []
    error_pattern = (
        "MERGANSER_OTLP_ENDPOINT is set, but it needs OpenTelemetry: "
        "pip install 'merganser.telemetry.'"
    )
    with pytest.raises(CommandError, match=error_pattern):
        otlp.enabled_signals(Settings(otlp_endpoint=COLLECTOR))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR)
    assert otlp.enabled_signals(Settings()) == []  # other programs can use this variable


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, []),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR}, ["traces", "metrics"]),
        ({"EXPORTER_OTLP_METRICS_ENDPOINT": COLLECTOR}, ["metrics"]),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR, "METRICS_EXPORTER": "none"}, ["traces"]),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR, "SDK_DISABLED": "true"}, []),
    ],
)
def test_opentelemetry_variables_select_signals(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[str]
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", text)
    assert otlp.enabled_signals(Settings()) == expected
