"""Numbers, names and lines: they stay few, right, and nobody waits for them."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older

from bench.servers.ports import free_port
from graph.app import create_app
from graph.execution.telemetry import (
    LABEL_COUNT_BY_SIGNED_IN,
    MAX_NAME_LENGTH,
    OperationLabels,
    OperationSpan,
    TraceParent,
    TraceSampler,
    parse_traceparent,
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
from resolvers.context import Viewer
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, Clock, context, receive

ODD = 'a\\b"c\nd\u00fc{},='


def samples(families: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def filled() -> list[metrics.MetricFamily]:
    counter, level = (
        Counter("some_things", "Things\nof \\ kinds.", ("kind",)),
        UpDownCounter("open", "Open."),
    )
    times = Histogram("wait_seconds", "Waits.", ("kind",), (0.5, 1.0))
    counter.add(ODD)
    counter.add(ODD, amount=2.5)
    level.add()
    level.add(amount=-1)
    for value in (0.1, 0.5, 0.7, 3):
        times.observe(value, "a")
    made = (counter, level, times)
    return [*(one.family() for one in made), info_family("some_build", "Facts.", {"version": "1"})]


EXPECTED = {
    ("some_things_total", (("kind", ODD),)): 3.5,
    ("open", ()): 0,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "0.5"))): 2,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "1.0"))): 3,
    ("wait_seconds_bucket", (("kind", "a"), ("le", "+Inf"))): 4,
    ("wait_seconds_count", (("kind", "a"),)): 4,
    ("wait_seconds_sum", (("kind", "a"),)): 4.3,
    ("some_build_info", (("version", "1"),)): 1,
}


@pytest.mark.parametrize(("new", "parse"), [(True, openmetrics), (False, older)])
def test_both_formats_say_the_same_to_a_real_parser(new: bool, parse: Callable[..., Any]) -> None:
    families = list(parse(metrics_text(filled(), is_openmetrics=new)))
    assert samples(families) == pytest.approx(EXPECTED)
    kinds = {family.name: family.type for family in families}
    assert kinds["wait_seconds"] == "histogram"
    assert kinds["some_things"] == "counter"


@pytest.mark.parametrize(
    ("accept", "new"),
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
def test_the_format_is_what_the_reader_prefers(accept: str, new: bool) -> None:
    assert prefers_openmetrics(accept) is new


def test_a_meter_keeps_so_many_combinations_and_counts_the_rest_as_one() -> None:
    counter, times = Counter("a", "", ("x", "y"), 3), Histogram("b", "", ("x",), (1.0,), 3)
    for number in range(1000):
        counter.add(str(number), "z")
        times.observe(0.5, str(number))
    values = {point.labels: point.value for point in counter.family().points}
    assert values == {("0", "z"): 1, ("1", "z"): 1, ("2", "z"): 1, ("other", "other"): 997}
    counts = {point.labels: sum(point.counts) for point in times.family().points}
    assert counts == {("0",): 1, ("1",): 1, ("2",): 1, ("other",): 997}


def test_labels_that_are_missing_are_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="2 labels are needed: x, y"):
        Counter("a", "", ("x", "y")).add("one")


def test_a_meter_is_made_once() -> None:
    with pytest.raises(ValueError, match="merganser_sockets"):
        metrics.counter("merganser_sockets", "Again.")


def test_a_flood_of_names_leaves_those_of_others_their_room() -> None:
    names = OperationLabels()
    strangers = {names.label_for(f"Flood{number}", signed_in=False) for number in range(10_000)}
    assert len(strangers) == LABEL_COUNT_BY_SIGNED_IN[False] + 1
    assert "other" in strangers
    assert names.label_for("Inbox", signed_in=True) == "Inbox"
    assert names.label_for("Inbox", signed_in=False) == "Inbox"
    users = {names.label_for(f"Mine{number}", signed_in=True) for number in range(10_000)}
    assert len(users) == LABEL_COUNT_BY_SIGNED_IN[True]  # with Inbox, and `other`
    assert names.label_for("x" * (MAX_NAME_LENGTH + 1), signed_in=True) == "other"
    assert names.label_for(None, signed_in=False) == "anonymous"


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceParent(TRACE, SPAN, is_sampled=True)),
        (f"00-{TRACE}-{SPAN}-00", TraceParent(TRACE, SPAN, is_sampled=False)),
        (f"01-{TRACE}-{SPAN}-03-more", TraceParent(TRACE, SPAN, is_sampled=True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("00-\u0660" * 9, None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_the_w3c_has_it(header: str, parent: object) -> None:
    assert parse_traceparent(header) == parent


class Bin:
    def add_trace(self, span: OperationSpan) -> None:
        pass


class Asked:
    def __init__(self, role: Role, header: str | None) -> None:
        self.viewer = Viewer(1, role)
        self.headers = {"traceparent": header} if header else {}


def test_who_may_have_an_operation_traced() -> None:
    sampled, not_sampled = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
    never, always = TraceSampler(0.0, Bin()), TraceSampler(1.0, Bin())
    root = never.new_span(Asked(Role.USER, sampled))
    assert root
    assert (root.trace_id, root.parent_id) == (TRACE, SPAN)
    assert never.new_span(Asked(Role.PUBLIC, sampled)) is None  # a stranger has no say
    stranger = always.new_span(Asked(Role.PUBLIC, sampled))
    assert stranger
    assert not stranger.trace_id
    assert always.new_span(Asked(Role.USER, not_sampled)) is None
    assert always.new_span(Asked(Role.USER, "nonsense"))
    many = sum(never.new_span(Asked(Role.USER, sampled)) is not None for _ in range(1000))
    assert many < 20


def test_a_trace_has_so_many_parts_and_counts_the_rest() -> None:
    root, times = Span("whole"), Histogram("d", "")
    token = current.set(root)
    try:
        for _ in range(MAX_CHILDREN + 5):
            with TimedBlock(times, "part"):
                pass
        with pytest.raises(ZeroDivisionError), TimedBlock(times, "part"):
            1 / 0  # noqa: B018
    finally:
        current.reset(token)
    assert len(root.children) == MAX_CHILDREN
    assert root.dropped_count == 6
    assert all(part.began_at <= part.ended_at for part in root.children)
    assert sum(times.family().points[0].counts) == MAX_CHILDREN + 6


def record(event: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("some.place", logging.INFO, "", 0, event, (), None)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(
    "value", ["a\nb", "\x1b[31m", 'x" y="z', "\udc80", 1 << 70, {"a": 1}, None]
)
def test_a_line_of_the_log_is_one_line_whatever_is_in_it(value: object) -> None:
    line = JsonLogFormatter().format(record("an event", fact=value))
    assert "\n" not in line
    fact = json.loads(line)
    assert (fact["event"], fact["from"], fact["level"]) == ("an event", "some.place", "info")
    text = TextLogFormatter().format(record("an event", fact=value, codes=["A", "B"]))
    assert text.isprintable()
    assert text.endswith("codes=A,B")


def test_nobody_waits_for_who_does_not_read_the_log() -> None:
    reading, writing = os.pipe()
    outlet = NonblockingLogHandler(writing)
    outlet.setFormatter(JsonLogFormatter())
    long = "x" * 6000  # more than a pipe takes at once
    for number in range(2 * MAX_BUFFERED_BYTES // 6000):
        outlet.handle(record("line", number=number, long=long))
    taken = b""
    for _ in range(40):
        taken += os.read(reading, 1 << 16)
        outlet.handle(record("line", number=-1, long=""))
    outlet.close()
    os.close(writing)
    while more := os.read(reading, 1 << 20):
        taken += more
    os.close(reading)
    lines = [json.loads(line) for line in taken.splitlines()]
    (lost,) = [line for line in lines if "lost" in line]
    assert lost["level"] == "warning"
    told = [line["number"] for line in lines if line.get("number", -1) >= 0]
    assert told == list(range(len(told)))  # whole, and in order
    assert len(lines) - 1 + lost["lost"] == 2 * MAX_BUFFERED_BYTES // 6000 + 40


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    reading, writing = os.pipe()
    outlet = NonblockingLogHandler(writing)
    os.close(reading)
    outlet.handle(record("line"))
    outlet.close()
    os.close(writing)


async def test_what_waits_in_the_store_is_counted(
    world: Environment, ada: Client, clock: Clock
) -> None:
    assert await read_backlog_figures(world) == BacklogFigures()
    await receive(ada)
    to = [NamedAddress("bob@example.net"), NamedAddress("eve@example.net")]
    await submission_create.send_message(
        context(ada), SendRequest(to=to, subject="Hello", text="Hi.")
    )
    clock.tick(hours=1)
    now = await read_backlog_figures(world)
    assert now.deliveries == {"PENDING": 2}
    assert now.submissions == {"QUEUED": 1}
    assert 3500 < now.overdue_seconds <= 3600
    assert now.unindexed_messages == 2  # what came, and the copy in Sent


async def test_a_store_that_is_away_is_told_and_takes_no_other_number_along(
    tmp_path: Path,
) -> None:
    nowhere = Database(f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/none")
    world = Environment(nowhere, FolderStore(tmp_path / "blobs"), signing_secret=b"s" * 32)
    families = await MetricsCollector(world).collect_families()
    parse: Callable[[str], Any] = openmetrics
    found = samples(parse(metrics_text(families, is_openmetrics=True)))
    assert found["merganser_store_up", ()] == 0
    assert ("process_cpu_seconds_total", ()) in found
    transport = httpx.ASGITransport(app=create_app(world, spool_folder=tmp_path))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answers = [await http.get(f"/health{path}") for path in ("", "/ready", "/live")]
    await nowhere.close()
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[1].json() == {"status": "unavailable", "components": {"store": "unavailable"}}
