"""What a server tells of itself: metrics, traces, logs, health; and what it never tells."""

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
from tests.support.servers.merganser_server import OTHER, PASSWORD, ROOT, START, Server
from tests.support.servers.metric_samples import MetricSamples, metric_value, parse_metrics
from tests.support.servers.otlp_collector import Collector, collecting

COLLECTOR = "http://127.0.0.1:4318"
KEY = "a key for metrics only"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NEW = "application/openmetrics-text;version=1.0.0"
OF_SEVERAL = ("merganser_worker_up", "worker ")  # where there are several processes
SECRET = "Xylophones and quinces"  # noqa: S105 - in what is sent; nowhere in what is told
LOGIN = (
    "mutation SignIn($i: AuthenticateInput!) { authenticate(input: $i) { token errors { code } } }"
)


@dataclass
class Watched(Server):
    """A server with settings of OpenTelemetry's own."""

    otel: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **{f"OTEL_{name}": text for name, text in self.otel.items()}}

    def ended(self) -> int:
        """Its code, once it has ended."""
        assert self._process
        return self._process.wait(START)

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def scrape(self, **headers: str) -> httpx.Response:
        """The metrics, asked for with the key and through a proxy, or else as is said."""
        given = {"Authorization": f"Bearer {KEY}", "Accept": NEW, "Via": "1.1 proxy", **headers}
        return httpx.get(f"{self.url}/metrics", headers=given, timeout=15)

    def numbers(self) -> MetricSamples:
        return parse_metrics(self.scrape().text)

    def ask(self, document: str, who: str | None = "ada", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets[who]}"} if who else {}
        headers |= more.pop("headers", {})
        sent = {"query": document, **more}
        return httpx.post(f"{self.url}/graphql", json=sent, headers=headers, timeout=15)

    def told(self, **facts: Any) -> list[dict[str, Any]]:
        """Lines of the log with these facts."""
        return [line for line in self.logged() if facts.items() <= line.items()]


def until(done: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Watched]:
    """Traces by request only, so that each is known; both exports are quick.

    The tests break it in the end, and the last one tells it to stop.
    """
    more = {
        "METRICS": "loopback",
        "METRICS_KEY": KEY,
        "OTLP": collector.url,
        "TRACE_SHARE": "0",
        "DRAIN": "1 min",
    }
    otel = {
        "BSP_SCHEDULE_DELAY": "50",
        "METRIC_EXPORT_INTERVAL": "300",
        "EXPORTER_OTLP_HEADERS": "x-tenant=ours",
    }
    made = Watched(tmp_path_factory.mktemp("watched"), more=more, otel=otel)
    made.make("ada", "bob")
    made.start()
    yield made
    made.kill()


def test_metrics_are_for_those_who_may_know(house: Watched) -> None:
    def status(shown: str) -> int:
        return house.scrape(Authorization=shown).status_code

    assert status("") == status("Bearer nobody") == status(f"Basic {KEY}") == 401
    assert status(f"Bearer {KEY}x") == status(f"Bearer {KEY[:-1]}") == status("Bearer") == 401
    assert status(f"Bearer {house.secrets['ada']}") == 403
    assert status(f"Bearer {house.secrets['root']}") == status(f"bearer {KEY}") == 200
    assert house.ask(
        "{ viewer { role } }", None, headers={"Authorization": f"Bearer {KEY}"}
    ).json()["errors"]


def test_both_formats_are_read_by_a_real_parser(house: Watched) -> None:
    new, old = house.scrape(), house.scrape(Accept="*/*")
    assert new.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert old.headers["content-type"].startswith("text/plain; version=0.0.4")
    first, second = parse_metrics(new.text), parse_metrics(old.text, older)
    assert first.keys() <= second.keys() | {key for key in first if "_http_" in key[0]}
    assert metric_value(first, "merganser_store_up") == 1
    assert metric_value(first, "process_resident_memory_bytes") > 10 << 20
    assert metric_value(first, "process_start_time_seconds") == pytest.approx(time.time(), abs=600)
    (build,) = [key for key in first if key[0] == "merganser_build_info"]
    assert ("store", "sqlite") in build[1]


def test_operations_are_counted_by_name_with_codes_and_cost(house: Watched) -> None:
    before = house.numbers()
    for _ in range(3):
        house.ask("query Who { viewer { user { username } } }")
    house.ask("{ viewer { role } }")
    house.ask("query Wrong { nope }")
    house.ask('query Gone { node(id: "u_x") { id } }')
    after = house.numbers()

    def more(name: str, **labels: str) -> float:
        return metric_value(after, name, **labels) - metric_value(before, name, **labels)

    seconds = "merganser_operation_seconds_count"
    assert more(seconds, operation="Who", kind="query") == 3
    assert more(seconds, operation="anonymous", kind="query") == 1
    assert more(seconds, operation="refused", kind="none") == 1
    assert more("merganser_operation_cost_total", operation="Who") >= 3
    errors = "merganser_operation_errors_total"
    assert more(errors, operation="refused", code="GRAPHQL_VALIDATION_FAILED") == 1
    assert more(errors, operation="Gone", code="BAD_ID") == 1
    assert not any(("operation", "Wrong") in labels for _, labels in after)
    assert more("merganser_document_lookups_total", result="hit") >= 2
    assert sum(more("merganser_store_seconds_count", work=work) for work in ("read", "find")) >= 1
    assert more("merganser_http_responses_total", road="graphql", status="200") >= 5


def test_the_documentation_names_all_that_is_counted(house: Watched) -> None:
    docs = (ROOT / "docs" / "operating.md").read_text()
    told = set(re.findall(r"^\| `(merganser_\w+)` \| ([\w, ]*) ?\|", docs, re.MULTILINE))
    told.discard(OF_SEVERAL)
    parse: Callable[[str], Any] = openmetrics
    known = {family.name: family for family in parse(house.scrape().text)}
    assert {name for name, _ in told} == {name for name in known if name.startswith("merganser_")}
    for name, labels in told:
        for sample in known[name].samples:
            assert set(sample.labels) - {"le"} == set(filter(None, labels.strip().split(", ")))


async def test_a_flood_of_names_makes_no_flood_of_numbers(house: Watched) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        for start in range(0, 120, 20):
            asked = [
                http.post(
                    f"{house.url}/graphql", json={"query": f"query Flood{nth} {{ __typename }}"}
                )
                for nth in range(start, start + 20)
            ]
            await asyncio.gather(*asked)
    found = house.numbers()
    labels = {dict(key[1]).get("operation", "") for key in found}
    assert 0 < len([label for label in labels if label.startswith("Flood")]) <= 50
    count = "merganser_operation_seconds_count"
    assert metric_value(found, count, operation="other", kind="query") >= 70
    house.ask("query AfterTheFlood { viewer { role } }")
    assert metric_value(house.numbers(), count, operation="AfterTheFlood", kind="query") == 1


def test_an_operation_is_one_line_of_the_log(house: Watched) -> None:
    headers = {"X-Request-Id": "line-of-the-log"}
    house.ask("query Line { viewer { role } }", headers=headers)
    (line,) = house.told(request_id="line-of-the-log")
    assert (line["event"], line["level"], line["kind"]) == ("operation", "info", "query")
    assert (line["operation"], line["status"], line["cost"]) == ("Line", "ok", 1)
    assert 0 < line["ms"] < 10_000
    assert isinstance(line["user"], int)
    assert "codes" not in line
    house.ask("query Line($a: Int!) { viewer { role } }", headers={"X-Request-Id": "refused-one"})
    (line,) = house.told(request_id="refused-one")
    assert line["status"] == "refused"
    assert line["codes"]


def traced(house: Watched, document: str, who: str | None, trace_id: str, **more: Any) -> None:
    header = {"traceparent": f"00-{trace_id}-{SPAN}-01"}
    house.ask(document, who, headers=header, **more)


def test_an_operation_is_traced_where_its_caller_traces(
    house: Watched, collector: Collector
) -> None:
    document = "query Traced { viewer { user { username mailboxes { path } } } }"
    traced(house, document, "ada", TRACE)
    whole = collector.wait(lambda: [s for s in collector.trace(TRACE) if s.parent_id == SPAN])[0]
    assert (whole.name, whole.failed) == ("query Traced", False)
    assert whole.facts["graphql.operation.name"] == "Traced"
    assert whole.facts["graphql.document.hash"].startswith("sha256:")
    assert whole.facts["merganser.cost"] > 0
    parts = [span for span in collector.trace(TRACE) if span.parent_id == whole.span_id]
    names = {part.name for part in parts}
    assert "load users.loaders.load_users_by_id" in names
    assert names & {"store read", "store find"}
    assert all(whole.began <= part.began <= part.ended <= whole.ended for part in parts)
    assert len(collector.trace(TRACE)) == len(parts) + 1
    assert collector.resources[-1]["service.name"] == "merganser"
    assert collector.headers[-1]["x-tenant"] == "ours"


def test_codes_are_in_a_trace_and_a_stranger_cannot_begin_one(
    house: Watched, collector: Collector
) -> None:
    strange, known = "1" * 32, "2" * 32
    traced(house, "query Strange { viewer { role } }", None, strange)
    traced(house, 'query Known { node(id: "u_x") { id } }', "ada", known)
    (span,) = collector.wait(lambda: [s for s in collector.trace(known) if s.parent_id == SPAN])
    assert span.facts["merganser.codes"] == ["BAD_ID"]
    assert not collector.trace(strange)


def test_numbers_are_sent_to_the_collector_too(house: Watched, collector: Collector) -> None:
    house.ask("query Sent { viewer { role } }")

    def count() -> int:
        metric = collector.metrics.get("merganser_operation_seconds")
        points = metric.histogram.data_points if metric else ()
        return sum(
            point.count
            for point in points
            if any(pair.value.string_value == "Sent" for pair in point.attributes)
        )

    assert collector.wait(count) == 1
    cost = collector.metrics["merganser_operation_cost"].sum
    assert cost.is_monotonic
    assert (
        cost.aggregation_temporality
        == cost.DESCRIPTOR.fields_by_name["aggregation_temporality"]
        .enum_type.values_by_name["AGGREGATION_TEMPORALITY_CUMULATIVE"]
        .number
    )
    assert collector.metrics["process_resident_memory_bytes"].unit == "By"


async def test_mail_that_comes_and_those_who_listen_are_counted(house: Watched) -> None:
    before = house.numbers()
    raw = f"From: carol@example.com\r\nSubject: {SECRET}\r\n\r\n{SECRET}\r\n".encode()
    document = "subscription Listen { changes { cursor events { kind } } }"
    async with house.socket(house.secrets["ada"]) as socket:
        await socket.subscribe(document)
        await asyncio.sleep(0.1)
        assert "250" in await house.deliver(raw, "ada@example.org")
        await socket.batch()
        during = house.numbers()
        assert (
            metric_value(during, "merganser_sockets")
            == metric_value(during, "merganser_subscriptions")
            == 1
        )
    neighbour = await house.neighbour()
    assert "250" in await neighbour.say("MAIL FROM:<>")
    assert "550" in await neighbour.say("RCPT TO:<nobody@example.org>")
    await neighbour.close()
    until(lambda: metric_value(house.numbers(), "merganser_sockets") == 0)
    after = house.numbers()
    delivered = metric_value(after, "merganser_lmtp_recipients_total", outcome="delivered")
    assert (
        delivered - metric_value(before, "merganser_lmtp_recipients_total", outcome="delivered")
        == 1
    )
    assert metric_value(after, "merganser_lmtp_recipients_total", outcome="refused") == 1
    assert metric_value(after, "merganser_change_lag_seconds_count") >= 1
    (line,) = house.told(operation="Listen")
    assert (line["kind"], line["status"]) == ("subscription", "ok")
    assert line["events"] >= 1


def test_no_secret_and_no_mail_is_told_anywhere(house: Watched, collector: Collector) -> None:
    known = "3" * 32
    wrong = {"username": "ada", "password": OTHER}
    right = {"username": "ada", "password": PASSWORD, "token": True}
    traced(house, LOGIN, "ada", known, variables={"i": wrong})
    answer = house.ask(LOGIN, None, variables={"i": right}).json()
    token = answer["data"]["authenticate"]["token"]
    traced(house, f'query Literal {{ node(id: "{SECRET}") {{ id }} }}', "ada", "4" * 32)
    house.ask("query Odd { viewer { role } }", operationName=SECRET)
    house.ask(f'query {{ nope(it: "{SECRET}") }}', variables={SECRET: SECRET})
    house.ask("{ viewer { role } }", None, headers={"Authorization": f"Bearer {token}x"})
    collector.wait(lambda: collector.trace(known) and collector.trace("4" * 32))
    everything = house.log.encode() + house.scrape().content + b"".join(collector.raw)
    secrets = [SECRET, PASSWORD, OTHER, token, KEY, *house.secrets.values(), "nope"]
    for secret in secrets:
        assert secret.encode() not in everything
    assert b"ada@example.org" not in everything
    assert b"127.0.0.1" not in b"".join(collector.raw)
    assert metric_value(house.numbers(), "merganser_sign_ins_total", result="failed") >= 1


def ready(server: Watched) -> tuple[int, list[str]]:
    """The status, and the components that are not well."""
    answer = httpx.get(f"{server.url}/health/ready", timeout=15)
    found = answer.json()["components"]
    assert set(found) == {"store", "migrations", "workers", "spool", "serving"}
    return answer.status_code, [name for name, state in found.items() if state != "ok"]


def test_who_asks_from_this_machine_may_read_where_it_is_set(house: Watched) -> None:
    local = httpx.get(f"{house.url}/metrics", timeout=15)
    assert local.status_code == 200
    for name in ("Via", "Forwarded", "X-Forwarded-For", "X-Real-IP"):
        passed_on = httpx.get(f"{house.url}/metrics", headers={name: "127.0.0.1"}, timeout=15)
        assert passed_on.status_code == 401


def test_the_incident_of_an_error_finds_its_lines(house: Watched) -> None:
    store = sqlite3.connect(house.folder / "var" / "merganser.db")
    with store:
        store.execute("ALTER TABLE addresses RENAME TO hidden")
    answer = house.ask("query Broken { viewer { user { addresses { nodes { id } } } } }").json()
    with store:
        store.execute("ALTER TABLE hidden RENAME TO addresses")
    store.close()
    (error,) = answer["errors"]
    incident = error["extensions"]["requestId"]
    assert error["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    lines = house.told(request_id=incident)
    assert [line["level"] for line in lines] == ["error", "info"]
    assert "no such table" in lines[0]["traceback"]
    assert (lines[1]["operation"], lines[1]["status"]) == ("Broken", "failed")
    assert lines[1]["codes"] == ["INTERNAL_SERVER_ERROR"]


def test_a_server_that_cannot_work_says_which_part_is_not_ready(house: Watched) -> None:
    assert ready(house) == (200, [])
    assert httpx.get(f"{house.url}/health", timeout=30).json() == {"status": "ok"}
    spool = house.folder / "var" / "spool" / "http"
    store = sqlite3.connect(house.folder / "var" / "merganser.db")
    (version,) = store.execute("SELECT version_num FROM alembic_version").fetchone()
    with store:
        store.execute("UPDATE alembic_version SET version_num = 'newer'")
    spool.rename(spool.with_name("away"))
    until(lambda: ready(house) == (503, ["migrations", "spool"]))
    assert httpx.get(f"{house.url}/health/live", timeout=30).json() == {"status": "ok"}
    assert httpx.get(f"{house.url}/health", timeout=30).status_code == 200
    spool.with_name("away").rename(spool)
    with store:
        store.execute("UPDATE alembic_version SET version_num = ?", [version])
    store.close()
    until(lambda: ready(house) == (200, []))
    assert len(house.told(event="not well", component="spool")) == 1
    assert len(house.told(event="well again", component="spool")) == 1


def test_told_to_stop_it_is_not_ready_but_answers_until_it_is_told_again(house: Watched) -> None:
    os.kill(house.pid, signal.SIGTERM)
    until(lambda: ready(house) == (503, ["serving"]))
    assert house.ask("{ viewer { role } }").status_code == 200
    assert house.told(event="draining", seconds=60.0)
    os.kill(house.pid, signal.SIGTERM)
    assert house.ended() == 0


async def test_the_time_to_drain_ends(world: Environment, tmp_path: Path) -> None:
    app = create_app(world, spool_folder=tmp_path)
    web = http_server.create_http_server(app, Settings())
    ending = GracefulShutdown(0.1, http_server=web)
    ending.handle_signal(signal.SIGINT)
    assert ending.is_requested
    assert not web.should_exit
    await asyncio.sleep(0.3)
    assert web.should_exit
    assert not web.force_exit  # requests still get their time


def test_without_the_packages_a_collector_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not there
    assert otlp.enabled_signals(Settings()) == []
    words = "MERGANSER_OTLP is set, but it needs OpenTelemetry: pip install 'merganser.telemetry.'"
    with pytest.raises(CommandError, match=words):
        otlp.enabled_signals(Settings(otlp=COLLECTOR))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR)
    assert otlp.enabled_signals(Settings()) == []  # it may be meant for others


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, []),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR}, ["traces", "metrics"]),
        ({"EXPORTER_OTLP_METRICS_ENDPOINT": COLLECTOR}, ["metrics"]),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR, "METRICS_EXPORTER": "none"}, ["traces"]),
        ({"EXPORTER_OTLP_ENDPOINT": COLLECTOR, "SDK_DISABLED": "true"}, []),
    ],
)
def test_the_usual_variables_say_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: list[str]
) -> None:
    for name, text in environment.items():
        monkeypatch.setenv(f"OTEL_{name}", text)
    assert otlp.enabled_signals(Settings()) == asked
