"""Metrics of a server: access, formats, values and export."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older

from tests.support.clients.plain_http import plain_client
from tests.support.servers.merganser_server import ROOT
from tests.support.servers.metric_samples import metric_value, parse_metrics
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
WORKER_METRIC = ("merganser_worker_up", "worker ")  # exists only with several processes


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
    openmetrics_response = observed_server.scrape()
    text_response = observed_server.scrape(Accept="*/*")
    assert openmetrics_response.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    assert text_response.headers["content-type"].startswith("text/plain; version=0.0.4")
    openmetrics_samples = parse_metrics(openmetrics_response.text)
    text_samples = parse_metrics(text_response.text, older)
    assert openmetrics_samples.keys() <= text_samples.keys() | {
        key for key in openmetrics_samples if "_http_" in key[0]
    }
    assert metric_value(openmetrics_samples, "merganser_database_up") == 1
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
        sum(
            increase("merganser_database_seconds_count", work=work)
            for work in ("read", "prepared_query")
        )
        >= 1
    )
    assert increase("merganser_http_responses_total", endpoint="graphql", status="200") >= 5


def test_documentation_lists_all_metrics(observed_server: ObservedServer) -> None:
    docs = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(merganser_\w+)` \| \w+ \| ([\w, ]*) ?\|", docs, re.MULTILINE)
    documented = set(rows)
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
    async with plain_client(timeout=HANG_SECONDS) as http:
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
    document = """subscription Listen($after: Cursor) {
      changes(after: $after) { cursor events { type } } }"""
    async with observed_server.open_client("ada") as client:
        cursor = await client.load_cursor()
    async with observed_server.open_websocket(observed_server.secrets["ada"]) as socket:
        await socket.subscribe(document, after=cursor)
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


def test_metrics_are_readable_from_loopback_without_proxy(observed_server: ObservedServer) -> None:
    assert observed_server.get("/metrics").status_code == 200
    for name in ("Via", "Forwarded", "X-Forwarded-For", "X-Real-IP"):
        assert observed_server.get("/metrics", **{name: "127.0.0.1"}).status_code == 401


def test_disk_and_event_loop_are_measured(observed_server: ObservedServer) -> None:
    samples = observed_server.read_metrics()
    size = metric_value(samples, "merganser_disk_size_bytes")
    assert 0 < metric_value(samples, "merganser_disk_free_bytes") < size
    name = "merganser_event_loop_delay_seconds_count"
    count = metric_value(samples, name)
    wait_until(lambda: metric_value(observed_server.read_metrics(), name) > count)
