"""Samples of metrics in the text that a server exports."""

from collections.abc import Callable
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

MetricSamples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse_metrics(text: str, parse: Callable[[str], Any] = openmetrics) -> MetricSamples:
    """The value of each sample by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def metric_value(samples: MetricSamples, name: str, **labels: str) -> float:
    """The value of one sample; 0 if there is none."""
    return samples.get((name, tuple(sorted(labels.items()))), 0)
