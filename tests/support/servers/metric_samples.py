"""Samples of metrics in the text that a server exports."""

from collections.abc import Callable
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

MetricSamples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse_metrics(text: str, parse: Callable[[str], Any] = openmetrics) -> MetricSamples:
    """The value of each sample by its name and labels."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in parse(text)
        for one in family.samples
    }


def metric_value(found: MetricSamples, name: str, **labels: str) -> float:
    """The value of one sample; 0 if there is none."""
    return found.get((name, tuple(sorted(labels.items()))), 0)
