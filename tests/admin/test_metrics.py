"""Metrics, labels, traces and log lines: limits, formats and non-blocking output."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from bench.servers.ports import free_port
from graph.app import create_app
from graph.execution.telemetry import (
    LABEL_COUNT_BY_SIGNED_IN,
    MAX_NAME_LENGTH,
    OperationLabels,
    OperationSpan,
    TraceParent,
    TraceSampler,
    parse_traceparent_or_none,
)
from graph.http.metrics import MetricsCollector
from graph.http.openmetrics import metrics_text, prefers_openmetrics
from mail.mime.header_encoding import NamedAddress
from mail.storage.blobs.object_stores import FolderStore
from merganser.server.observability.logs import (
    MAX_BUFFERED_BYTES,
    JsonLogFormatter,
    NonblockingLogHandler,
    TextLogFormatter,
)
from models.observability import metrics
from models.observability.metrics import Counter, Histogram, UpDownCounter, info_family
from models.observability.traces import MAX_CHILDREN, Span, TimedBlock, current
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role
from resolvers.admin.metrics import BacklogFigures, read_backlog_figures
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to

ODD_LABEL = 'a\\b"c\nd\u00fc{},='


def sample_values(families: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def make_families() -> list[metrics.MetricFamily]:
    counter = Counter("some_things", "Things\nof \\ kinds.", ("kind",))
    gauge = UpDownCounter("open", "Open.")
    histogram = Histogram("wait_seconds", "Waits.", ("kind",), (0.5, 1.0))
    counter.add(ODD_LABEL)
    counter.add(ODD_LABEL, amount=2.5)
    gauge.add()
    gauge.add(amount=-1)
    for value in (0.1, 0.5, 0.7, 3):
        histogram.observe(value, "a")
    meters = (counter, gauge, histogram)
    return [
        *(meter.family() for meter in meters),
        info_family("some_build", "Facts.", {"version": "1"}),
    ]


EXPECTED_SAMPLES = {
    ("some_things_total", (("kind", ODD_LABEL),)): 3.5,
    ("open", ()): 0,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "0.5"))): 2,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "1.0"))): 3,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "+Inf"))): 4,
    ("wait_seconds_count", (("kind", "a"),)): 4,
    ("wait_seconds_sum", (("kind", "a"),)): 4.3,
    ("some_build_info", (("version", "1"),)): 1,
}


@pytest.mark.parametrize(("is_openmetrics", "parse"), [(True, openmetrics), (False, prometheus)])
def test_both_formats_are_parsed_to_the_same_samples(
    is_openmetrics: bool, parse: Callable[..., Any]
) -> None:
    families = list(parse(metrics_text(make_families(), is_openmetrics=is_openmetrics)))
    assert sample_values(families) == pytest.approx(EXPECTED_SAMPLES)
    kinds = {family.name: family.type for family in families}
    assert kinds["wait_seconds"] == "histogram"
    assert kinds["some_things"] == "counter"


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/openmetrics-text", True),
        (
            "application/openmetrics-text; version=1.0.0; q=0.6, text/plain;version=0.0.4;q=0.3",
            True,
        ),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.5", False),
        ("application/openmetrics-text;version=2.0.0,*/*;q=0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x;version", False),
    ],
)
def test_format_follows_the_accept_header(accept: str, is_openmetrics: bool) -> None:
    assert prefers_openmetrics(accept) is is_openmetrics


def test_label_combinations_of_a_meter_are_limited() -> None:
    counter, histogram = Counter("a", "", ("x", "y"), 3), Histogram("b", "", ("x",), (1.0,), 3)
    for number in range(1000):
        counter.add(str(number), "z")
        histogram.observe(0.5, str(number))
    values = {point.labels: point.value for point in counter.family().points}
    assert values == {("0", "z"): 1, ("1", "z"): 1, ("2", "z"): 1, ("other", "other"): 997}
    counts = {point.labels: sum(point.counts) for point in histogram.family().points}
    assert counts == {("0",): 1, ("1",): 1, ("2",): 1, ("other",): 997}


def test_missing_label_raises_type_error() -> None:
    with pytest.raises(TypeError, match="2 labels are needed: x, y"):
        Counter("a", "", ("x", "y")).add("one")


def test_meter_name_is_unique() -> None:
    with pytest.raises(ValueError, match="merganser_sockets"):
        metrics.counter("merganser_sockets", "Again.")


def test_operation_labels_of_anonymous_and_users_are_limited_apart() -> None:
    labels = OperationLabels()
    anonymous_labels = {
        labels.reserve_operation_label_or_other(f"Flood{number}", signed_in=False)
        for number in range(10_000)
    }
    assert len(anonymous_labels) == LABEL_COUNT_BY_SIGNED_IN[False] + 1
    assert "other" in anonymous_labels
    assert labels.reserve_operation_label_or_other("Inbox", signed_in=True) == "Inbox"
    assert labels.reserve_operation_label_or_other("Inbox", signed_in=False) == "Inbox"
    user_labels = {
        labels.reserve_operation_label_or_other(f"Mine{number}", signed_in=True)
        for number in range(10_000)
    }
    assert len(user_labels) == LABEL_COUNT_BY_SIGNED_IN[True]  # includes Inbox and `other`
    assert (
        labels.reserve_operation_label_or_other("x" * (MAX_NAME_LENGTH + 1), signed_in=True)
        == "other"
    )
    assert labels.reserve_operation_label_or_other(None, signed_in=False) == "anonymous"


TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", TraceParent(TRACE_ID, SPAN_ID, is_sampled=True)),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", TraceParent(TRACE_ID, SPAN_ID, is_sampled=False)),
        (f"01-{TRACE_ID}-{SPAN_ID}-03-more", TraceParent(TRACE_ID, SPAN_ID, is_sampled=True)),
        (f"00-{TRACE_ID}-{SPAN_ID}-01-more", None),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", None),
        (f"00-{'0' * 32}-{SPAN_ID}-01", None),
        (f"00-{TRACE_ID}-{'0' * 16}-01", None),
        (f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", None),
        (f"00-{TRACE_ID}-{SPAN_ID}", None),
        ("00-\u0660" * 9, None),
        ("", None),
    ],
)
def test_traceparent_is_parsed_as_w3c_specifies(header: str, parent: object) -> None:
    assert parse_traceparent_or_none(header) == parent


class DiscardingExporter:
    def add_trace(self, span: OperationSpan) -> None:
        pass


class FakeTracedRequest:
    def __init__(self, role: Role, header: str | None) -> None:
        self.viewer = Viewer(1, role)
        self.headers = {"traceparent": header} if header else {}


def test_sampling_follows_traceparent_of_signed_in_users_only() -> None:
    sampled, not_sampled = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"
    never, always = TraceSampler(0.0, DiscardingExporter()), TraceSampler(1.0, DiscardingExporter())
    root_span = never.new_span_if_sampled(FakeTracedRequest(Role.USER, sampled))
    assert root_span
    assert (root_span.trace_id, root_span.parent_id) == (TRACE_ID, SPAN_ID)
    # anonymous clients can't request a trace
    assert never.new_span_if_sampled(FakeTracedRequest(Role.PUBLIC, sampled)) is None
    anonymous_span = always.new_span_if_sampled(FakeTracedRequest(Role.PUBLIC, sampled))
    assert anonymous_span
    assert not anonymous_span.trace_id
    assert always.new_span_if_sampled(FakeTracedRequest(Role.USER, not_sampled)) is None
    assert always.new_span_if_sampled(FakeTracedRequest(Role.USER, "nonsense"))
    sampled_count = sum(
        never.new_span_if_sampled(FakeTracedRequest(Role.USER, sampled)) is not None
        for _ in range(1000)
    )
    assert sampled_count < 20


def test_number_of_child_spans_is_limited() -> None:
    root, histogram = Span("whole"), Histogram("d", "")
    token = current.set(root)
    try:
        for _ in range(MAX_CHILDREN + 5):
            with TimedBlock(histogram, "part"):
                pass
        with pytest.raises(ZeroDivisionError), TimedBlock(histogram, "part"):
            1 / 0  # noqa: B018
    finally:
        current.reset(token)
    assert len(root.children) == MAX_CHILDREN
    assert root.dropped_count == 6
    assert all(child.began_at <= child.ended_at for child in root.children)
    assert sum(histogram.family().points[0].counts) == MAX_CHILDREN + 6


def make_log_record(event: str, **extra: object) -> logging.LogRecord:
    log_record = logging.LogRecord("some.place", logging.INFO, "", 0, event, (), None)
    vars(log_record).update(extra)
    return log_record


@pytest.mark.parametrize(
    "value", ["a\nb", "\x1b[31m", 'x" y="z', "\udc80", 1 << 70, {"a": 1}, None]
)
def test_log_record_is_one_line_with_any_value(value: object) -> None:
    line = JsonLogFormatter().format(make_log_record("an event", fact=value))
    assert "\n" not in line
    fact = json.loads(line)
    assert (fact["event"], fact["from"], fact["level"]) == ("an event", "some.place", "info")
    text = TextLogFormatter().format(make_log_record("an event", fact=value, codes=["A", "B"]))
    assert text.isprintable()
    assert text.endswith("codes=A,B")


def test_error_text_forges_no_line_of_a_text_log() -> None:
    log_record = make_log_record("Failed")
    try:
        raise ValueError("a\n12:00:00 info Signed in\r\x1b[31m")
    except ValueError:
        log_record.exc_info = sys.exc_info()
    first, *others = TextLogFormatter().format(log_record).split("\n")
    assert first.endswith("Failed")
    assert all(line.isprintable() and line.startswith("    ") for line in others)
    assert "    12:00:00 info Signed in" in others


def test_log_handler_does_not_block_without_a_reader() -> None:
    read_end, write_end = os.pipe()
    handler = NonblockingLogHandler(write_end)
    handler.setFormatter(JsonLogFormatter())
    long_text = "x" * 6000  # more than a pipe accepts at once
    for number in range(2 * MAX_BUFFERED_BYTES // 6000):
        handler.handle(make_log_record("line", number=number, long=long_text))
    output = b""
    for _ in range(40):
        output += os.read(read_end, 1 << 16)
        handler.handle(make_log_record("line", number=-1, long=""))
    handler.close()
    os.close(write_end)
    while chunk := os.read(read_end, 1 << 20):
        output += chunk
    os.close(read_end)
    lines = [json.loads(line) for line in output.splitlines()]
    (lost,) = [line for line in lines if "lost" in line]
    assert lost["level"] == "warning"
    numbers = [line["number"] for line in lines if line.get("number", -1) >= 0]
    assert numbers == list(range(len(numbers)))  # complete and in order
    assert len(lines) - 1 + lost["lost"] == 2 * MAX_BUFFERED_BYTES // 6000 + 40


def test_log_handler_ignores_a_closed_reader() -> None:
    read_end, write_end = os.pipe()
    handler = NonblockingLogHandler(write_end)
    os.close(read_end)
    handler.handle(make_log_record("line"))
    handler.close()
    os.close(write_end)


async def test_backlog_of_the_database_is_counted(
    environment: Environment, ada: GraphQLClient, clock: ManualClock
) -> None:
    assert await read_backlog_figures(environment) == BacklogFigures()
    await deliver_to(ada)
    recipients = [NamedAddress("bob@example.net"), NamedAddress("eve@example.net")]
    await submission_create.compose_and_queue_message(
        client_context(ada), SendRequest(to=recipients, subject="Hello", text="Hi.")
    )
    clock.tick(hours=1)
    figures = await read_backlog_figures(environment)
    assert figures.deliveries == {"PENDING": 2}
    assert figures.submissions == {"QUEUED": 1}
    assert 3500 < figures.overdue_seconds <= 3600
    assert figures.unindexed_messages == 2  # the received message and the copy in Sent


async def test_unavailable_database_is_reported_beside_other_metrics(
    tmp_path: Path,
) -> None:
    unavailable_database = Database(f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/none")
    environment = Environment(
        unavailable_database, FolderStore(tmp_path / "blobs"), signing_secret=b"s" * 32
    )
    families = await MetricsCollector(environment).collect_families()
    parse: Callable[[str], Any] = openmetrics
    values = sample_values(parse(metrics_text(families, is_openmetrics=True)))
    assert values["merganser_database_up", ()] == 0
    assert ("process_cpu_seconds_total", ()) in values
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=tmp_path))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answers = [await http.get(f"/health{path}") for path in ("", "/ready", "/live")]
    await unavailable_database.close()
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[1].json() == {"status": "unavailable", "components": {"store": "unavailable"}}
