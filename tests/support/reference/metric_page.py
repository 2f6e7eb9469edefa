"""The page of metrics."""

import graph.app  # noqa: F401 - imports every module that defines metrics
import merganser.server.lifecycle
import merganser.server.observability.logs  # noqa: F401 - as above
from graph.http.metrics import (
    database_families,
    disk_families,
    own_metric_families,
    version_info_family,
)
from models.observability.metrics import MetricFamily, MetricKind
from resolvers.admin.metrics import BacklogFigures
from tests.support.reference.markdown import cell, table

INTRODUCTION = """\
# Metrics

These are the metrics of `/metrics`. [Collect metrics](../operating/metrics.md) explains how to read
them, and which alerts are useful.

Times are in seconds and sizes in bytes. In the output, counters have the suffix `_total` and
`merganser_build` has `_info`.
"""
WORKER_ROW = (
    "`merganser_worker_up`",
    "gauge",
    "worker",
    "1 for each process that runs and reports its metrics. Only with several processes.",
)


def exported_families() -> list[MetricFamily]:
    """The metrics that a server of one process exports."""
    return [
        *own_metric_families(),
        *database_families(BacklogFigures()),
        *disk_families(None),
        version_info_family("sqlite"),
    ]


def metrics_page() -> str:
    """The page with type, labels and meaning of each metric."""
    rows = sorted([*map(_row, exported_families()), WORKER_ROW])
    return "\n".join([INTRODUCTION, *table(("Name", "Type", "Labels", "Meaning"), rows)])


def _row(family: MetricFamily) -> tuple[str, str, str, str]:
    kind = "info" if family.kind is MetricKind.INFO else family.kind.value
    return f"`{family.name}`", kind, ", ".join(family.labels), cell(family.help)
