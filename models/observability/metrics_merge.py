"""Merges the metrics of several processes into those of a server."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add

import orjson

from models.observability.metrics import (
    OTHER,
    Labels,
    MetricFamily,
    MetricKind,
    MetricPoint,
    ProcessAggregation,
)

CUMULATIVE_KINDS = (MetricKind.COUNTER, MetricKind.HISTOGRAM)
WORKER_LABEL = "worker"
MAX_COMBINATIONS = (
    1000  # of labels that are kept over restarts, since a process may restart many times
)


@dataclass(frozen=True, slots=True)
class ProcessFamilies:
    """The metric families of a process, with its name and whether it is running."""

    name: str
    is_up: bool
    families: Sequence[MetricFamily]


def merge_families(processes: Iterable[ProcessFamilies]) -> list[MetricFamily]:
    """Merge the families of processes.

    From a process that has ended only the sums are used, so that no sum decreases.
    """
    merged_families: dict[str, MetricFamily] = {}
    for process in processes:
        for family in process.families:
            if not process.is_up and not _is_sum(family):
                continue
            labelled_family = (
                _with_worker_label(family, process.name)
                if family.aggregation is ProcessAggregation.EACH
                else family
            )
            existing = merged_families.get(family.name)
            points = _add_points(existing.points if existing else (), labelled_family.points)
            merged_families[family.name] = labelled_family._replace(points=points)
    return list(merged_families.values())


def _with_worker_label(family: MetricFamily, worker_name: str) -> MetricFamily:
    points = [MetricPoint((*p.labels, worker_name), p.value, p.counts) for p in family.points]
    return family._replace(labels=(*family.labels, WORKER_LABEL), points=points)


def add_earlier_counts(
    earlier: Sequence[MetricFamily], current: Sequence[MetricFamily]
) -> list[MetricFamily]:
    """Add the counts of an earlier run of a process to its current ones."""
    earlier_families = {family.name: family for family in earlier if _is_sum(family)}
    return [
        family._replace(
            points=_add_points(
                earlier_families[family.name].points, family.points, MAX_COMBINATIONS
            )
        )
        if family.name in earlier_families
        else family
        for family in current
    ]


def _is_sum(family: MetricFamily) -> bool:
    return family.kind in CUMULATIVE_KINDS and family.aggregation is ProcessAggregation.SUM


def _add_points(
    first: Sequence[MetricPoint], second: Sequence[MetricPoint], max_combinations: int | None = None
) -> list[MetricPoint]:
    """Add points with the same labels; above `max_combinations` new labels count as OTHER."""
    points_by_labels: dict[Labels, MetricPoint] = {point.labels: point for point in first}
    for point in second:
        labels = point.labels
        if (
            max_combinations is not None
            and labels not in points_by_labels
            and len(points_by_labels) >= max_combinations
        ):
            labels = (OTHER,) * len(labels)
        existing = points_by_labels.get(labels)
        counts = tuple(map(add, existing.counts, point.counts)) if existing else point.counts
        points_by_labels[labels] = MetricPoint(
            labels, point.value + (existing.value if existing else 0), counts
        )
    return list(points_by_labels.values())


def serialize_families(families: Sequence[MetricFamily]) -> bytes:
    """Serialize families as JSON."""
    return orjson.dumps(families, default=tuple)


def deserialize_families(data: bytes) -> list[MetricFamily]:
    """Convert the JSON of `serialize_families`."""
    return [
        MetricFamily(
            name,
            MetricKind(kind),
            words,
            tuple(labels),
            [MetricPoint(tuple(names), value, tuple(counts)) for names, value, counts in points],
            tuple(bounds),
            ProcessAggregation(across),
        )
        for name, kind, words, labels, points, bounds, across in orjson.loads(data)
    ]
