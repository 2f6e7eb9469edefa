"""The alert rules and the dashboard in `deploy/` use metrics that a server exports."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.observability.metrics import MetricFamily, MetricKind
from models.queue.tables import DeliveryState
from tests.support.reference.metric_page import exported_families
from tests.support.servers.program_process import program_path, require_program

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
CASES = Path(__file__).with_name("alert_cases.yaml")
SUFFIXES_BY_KIND = {
    MetricKind.COUNTER: ("_total",),
    MetricKind.GAUGE: ("",),
    MetricKind.HISTOGRAM: ("_bucket", "_sum", "_count"),
    MetricKind.INFO: ("_info",),
}
PROMETHEUS_LABELS = {"job", "instance"}  # Prometheus adds them to each sample
METRIC = re.compile(r"\b((?:merganser|process)_\w+)(?:\{([^}]*)\})?")
SELECTOR = re.compile(r'(\w+)=~?"([^"]*)"')
GROUPING = re.compile(r"\bby \(([^)]*)\)")


def alert_expressions() -> Iterator[str]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def panels() -> list[Mapping[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        yield from re.findall(r"label_values\((.*), \w+\)", variable["query"])


def exported_labels() -> dict[str, set[str]]:
    """The labels of each sample that a server exports, by its name."""
    labels = {"merganser_worker_up": {"worker"}}  # only with several processes
    for family in exported_families():
        for suffix in SUFFIXES_BY_KIND[family.kind]:
            labels[f"{family.name}{suffix}"] = labels_of_family(family)
    return labels


def labels_of_family(family: MetricFamily) -> set[str]:
    bounds = {"le"} if family.kind is MetricKind.HISTOGRAM else set()
    return {*family.labels, *bounds}


EXPRESSIONS = [
    *(pytest.param(expr, id=f"alert {expr[:60]}") for expr in alert_expressions()),
    *(pytest.param(expr, id=f"dashboard {expr[:60]}") for expr in dashboard_expressions()),
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_are_exported(expression: str) -> None:
    exported = exported_labels()
    names = METRIC.findall(expression)
    assert names or expression.startswith("up{")
    known = set(PROMETHEUS_LABELS)
    for name, selector in names:
        assert name in exported
        for label, value in SELECTOR.findall(selector):
            assert label in exported[name] | PROMETHEUS_LABELS, (name, label)
            if label == "state":
                assert value in set(DeliveryState)
        known |= exported[name]
    for grouping in GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= known


def test_legends_name_labels_of_their_expression() -> None:
    exported = exported_labels()
    for panel in panels():
        for target in panel.get("targets", ()):
            groupings = GROUPING.findall(target["expr"])
            grouped = {label.strip() for text in groupings for label in text.split(",")}
            known = grouped or PROMETHEUS_LABELS.union(
                *(exported[name] for name, _ in METRIC.findall(target["expr"]))
            )
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert used <= known, panel["title"]


def test_alerts_and_panels_have_unique_names() -> None:
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    ]
    for names in (
        [rule["alert"] for rule in rules],
        [panel["title"] for panel in panels()],
        [str(panel["id"]) for panel in panels()],
    ):
        assert len(names) == len(set(names))
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description"} == set(rule["annotations"])


def test_panels_do_not_overlap() -> None:
    cells = [
        (column, line)
        for panel in panels()
        for grid in [panel["gridPos"]]
        for column in range(grid["x"], grid["x"] + grid["w"])
        for line in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24


def test_cases_have_every_alert() -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert alerts == set(re.findall(r'alertname="(\w+)"', CASES.read_text()))


def test_annotations_name_labels_of_their_expression() -> None:
    exported = exported_labels()
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            groupings = GROUPING.findall(rule["expr"])
            grouped = {label.strip() for text in groupings for label in text.split(",")}
            known = grouped or PROMETHEUS_LABELS.union(
                *(exported[name] for name, _ in METRIC.findall(rule["expr"]))
            )
            texts = "".join(rule["annotations"].values())
            assert set(re.findall(r"\$labels\.(\w+)", texts)) <= known, rule["alert"]


@pytest.mark.parametrize("arguments", [("check", "rules", ALERTS), ("test", "rules", CASES)])
def test_promtool_accepts_the_rules(arguments: tuple[str | Path, ...]) -> None:
    require_program("promtool")
    command = [program_path("promtool"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
