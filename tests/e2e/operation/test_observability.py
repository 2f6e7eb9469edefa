"""Logs, traces and health of a server, and that they contain no secrets."""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from graph.app import create_app
from merganser.errors import CommandError
from merganser.server import http_server
from merganser.server.observability import otlp
from merganser.server.shutdown import GracefulShutdown
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from tests.support.servers.merganser_server import OTHER_PASSWORD, PASSWORD
from tests.support.servers.metric_samples import metric_value
from tests.support.servers.observed_server import (
    METRICS_KEY,
    SECRET,
    ObservedServer,
    collector,
    observed_server,
    wait_until,
)
from tests.support.servers.otlp_collector import OtlpCollector
from tests.support.time_limits import HANG_SECONDS

__all__ = ["collector", "observed_server"]
COLLECTOR = "http://127.0.0.1:4318"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SIGN_IN = (
    "mutation SignIn($i: AuthenticateInput!) { authenticate(input: $i) { token errors { code } } }"
)
VERIFY = (
    "mutation Verify($i: PasswordVerifyInput!) { passwordVerify(input: $i) { errors { code } } }"
)


def test_operation_is_one_log_line(observed_server: ObservedServer) -> None:
    headers = {"X-Request-Id": "line-of-the-log"}
    observed_server.query("query Line { viewer { role } }", headers=headers)
    (line,) = observed_server.log_lines_with(request_id="line-of-the-log")
    assert (line["event"], line["level"], line["kind"]) == ("operation", "info", "query")
    assert (line["operation"], line["status"], line["cost"]) == ("Line", "ok", 1)
    assert 0 < line["ms"] < 10_000
    assert line["statements"] >= 0
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
    document = "query Traced { viewer { user { username mailboxes { nodes { path } } } } }"
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
    assert names & {"database read", "database prepared query"}
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


def test_logs_metrics_and_traces_contain_no_secrets_or_mail(
    observed_server: ObservedServer, collector: OtlpCollector
) -> None:
    trace_id = "3" * 32
    wrong_credentials = {"username": "ada", "password": OTHER_PASSWORD}
    valid_credentials = {"username": "ada", "password": PASSWORD}
    query_with_trace(observed_server, SIGN_IN, "ada", trace_id, variables={"i": wrong_credentials})
    result = observed_server.query(SIGN_IN, None, variables={"i": valid_credentials}).json()
    token = result["data"]["authenticate"]["token"]
    for credentials in (wrong_credentials, valid_credentials):
        values = {**credentials, "scope": "FULL", "totp": SECRET}
        observed_server.query(VERIFY, None, variables={"i": values})
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
    response = server.get("/health/ready")
    components = response.json()["components"]
    assert set(components) == {"store", "migrations", "workers", "spool", "node", "serving"}
    return response.status_code, [name for name, state in components.items() if state != "ok"]


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
    assert observed_server.get("/health").json() == {"status": "ok"}
    spool = observed_server.folder / "var" / "spool" / "http"
    connection = sqlite3.connect(observed_server.folder / "var" / "merganser.db")
    (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    set_oldest = "UPDATE store_facts SET digest = ? WHERE name = 'oldest revision'"
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = 'newer'")
        connection.execute(set_oldest, ["newer"])
    spool.rename(spool.with_name("away"))
    wait_until(lambda: readiness(observed_server) == (503, ["migrations", "spool"]))
    assert observed_server.get("/health/live").json() == {"status": "ok"}
    assert observed_server.get("/health").status_code == 200
    spool.with_name("away").rename(spool)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
        connection.execute(set_oldest, [version])
    connection.close()
    wait_until(lambda: readiness(observed_server) == (200, []))
    assert len(observed_server.log_lines_with(event="Server is not ready", component="spool")) == 1
    assert (
        len(observed_server.log_lines_with(event="Server is ready again", component="spool")) == 1
    )


def test_draining_server_is_not_ready_but_answers_until_second_signal(
    observed_server: ObservedServer,
) -> None:
    os.kill(observed_server.pid, signal.SIGTERM)
    wait_until(lambda: readiness(observed_server) == (503, ["serving"]))
    assert observed_server.query("{ viewer { role } }").status_code == 200
    assert observed_server.log_lines_with(event="Draining", seconds=60.0)
    os.kill(observed_server.pid, signal.SIGTERM)
    assert observed_server.wait_for_exit() == 0


async def test_drain_ends_after_its_time_limit(environment: Environment, tmp_path: Path) -> None:
    app = create_app(environment, spool_folder=tmp_path)
    web_server = http_server.create_http_server(app, Settings())
    shutdown = GracefulShutdown(0.1, http_server=web_server)
    shutdown.begin_stop_or_skip_drain(signal.SIGINT)
    assert shutdown.is_requested
    assert not web_server.should_exit
    async with asyncio.timeout(HANG_SECONDS):
        while not web_server.should_exit:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    assert not web_server.force_exit  # current requests can still finish


def test_otlp_without_packages_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    assert otlp.exportable_signals_or_fail_command(Settings()) == []
    error_pattern = (
        "MERGANSER_OTLP_ENDPOINT is set, but OpenTelemetry is missing: "
        "pip install 'merganser.telemetry.'"
    )
    with pytest.raises(CommandError, match=error_pattern):
        otlp.exportable_signals_or_fail_command(Settings(otlp_endpoint=COLLECTOR))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR)
    # other programs can use this variable
    assert otlp.exportable_signals_or_fail_command(Settings()) == []


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
    assert otlp.exportable_signals_or_fail_command(Settings()) == expected
