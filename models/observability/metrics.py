"""The metrics of a process: plain numbers that are read on request.

Modules create their meters at import, by `counter`, `up_down_counter` and `histogram`, and change
them on the event loop's thread. A change is one lookup in a dict: 0.2 µs. Labels are fixed words or
checked names. A meter keeps at most `max_combinations` of labels; the rest counts as OTHER.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

OTHER = "other"  # stands for all combinations of labels above the limit
MAX_COMBINATIONS = 200  # of labels in a meter
SECONDS_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
COUNT_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0)

Labels = tuple[str, ...]


class MetricKind(StrEnum):
    """The type of a metric family in OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class ProcessAggregation(StrEnum):
    """How the values of several processes of a server are combined."""

    SUM = "sum"  # they are added up
    EACH = "each"  # each is exported, with the name of its worker as label
    SAME = "same"  # they are the same in all processes, so one of them is exported


class MetricPoint(NamedTuple):
    """A value, or the data of a histogram: the sum of its values and their counts.

    `counts` has the number of values up to each bound, not cumulated, and last those above all
    bounds.
    """

    labels: Labels
    value: float
    counts: tuple[int, ...] = ()


class MetricFamily(NamedTuple):
    """The points of one metric name. Names end in their unit; counters have no `_total`."""

    name: str
    kind: MetricKind
    help: str
    labels: Labels
    points: Sequence[MetricPoint]
    bounds: tuple[float, ...] = ()
    aggregation: ProcessAggregation = ProcessAggregation.SUM


class Counter:
    """A value that only increases, for each combination of labels."""

    def __init__(
        self, name: str, help: str, labels: Labels = (), max_combinations: int = MAX_COMBINATIONS
    ) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.max_combinations = max_combinations
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, *labels: str, amount: float = 1) -> None:
        """Increase the value of these labels, by 1 or by `amount`."""
        try:
            self._values[labels] += amount
        except KeyError:
            self._add_to_new_labels(labels, amount)

    def _add_to_new_labels(self, labels: Labels, amount: float) -> None:
        labels = _labels_or_other_at_limit(
            self.labels, labels, len(self._values), self.max_combinations
        )
        self._values[labels] = self._values.get(labels, 0) + amount

    def value(self, *labels: str) -> float:
        """Return the value of these labels."""
        return self._values.get(labels, 0)

    def family(self) -> MetricFamily:
        """Return the current values as a family."""
        points = [MetricPoint(labels, value) for labels, value in self._values.items()]
        return MetricFamily(self.name, MetricKind.COUNTER, self.help, self.labels, points)


class UpDownCounter(Counter):
    """A value that increases and decreases. The values of all processes are added up."""

    def family(self) -> MetricFamily:
        """Return the current values as a family of gauges."""
        return super().family()._replace(kind=MetricKind.GAUGE)


class Histogram:
    """Counts observed values by bounds, and adds them up."""

    def __init__(
        self,
        name: str,
        help: str,
        labels: Labels = (),
        bounds: tuple[float, ...] = SECONDS_BOUNDS,
        max_combinations: int = MAX_COMBINATIONS,
    ) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.bounds = bounds
        self.max_combinations = max_combinations
        self._rows: dict[Labels, list[float]] = {}  # a count for each bound, one more, the sum
        if not labels:
            self._create_row_or_use_other_at_limit(())

    def observe(self, value: float, *labels: str) -> None:
        """Count one value for these labels."""
        row = self._rows.get(labels) or self._create_row_or_use_other_at_limit(labels)
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def _create_row_or_use_other_at_limit(self, labels: Labels) -> list[float]:
        labels = _labels_or_other_at_limit(
            self.labels, labels, len(self._rows), self.max_combinations
        )
        return self._rows.setdefault(labels, [0] * (len(self.bounds) + 1) + [0.0])

    def family(self) -> MetricFamily:
        """Return the current counts as a family."""
        points = [
            MetricPoint(labels, row[-1], tuple(map(int, row[:-1])))
            for labels, row in self._rows.items()
        ]
        return MetricFamily(
            self.name, MetricKind.HISTOGRAM, self.help, self.labels, points, self.bounds
        )


def _labels_or_other_at_limit(
    names: Labels, labels: Labels, count: int, max_combinations: int
) -> Labels:
    """Return the labels, or OTHER for each if there is no room for another combination."""
    if len(labels) != len(names):
        raise TypeError(f"{len(names)} labels are needed: {', '.join(names)}")
    return labels if count < max_combinations else (OTHER,) * len(names)


Meter = Counter | Histogram
AnyMeter = TypeVar("AnyMeter", bound=Meter)

_meters: dict[str, Meter] = {}


def _register(meter: AnyMeter) -> AnyMeter:
    if meter.name in _meters:
        raise ValueError(f"there is a meter {meter.name} already")
    _meters[meter.name] = meter
    return meter


def counter(
    name: str, help: str, *labels: str, max_combinations: int = MAX_COMBINATIONS
) -> Counter:
    """Create a counter. Its name begins with merganser_ and has no `_total`."""
    return _register(Counter(name, help, labels, max_combinations))


def up_down_counter(
    name: str, help: str, *labels: str, max_combinations: int = MAX_COMBINATIONS
) -> UpDownCounter:
    """Create a meter of a current number, which increases and decreases."""
    return _register(UpDownCounter(name, help, labels, max_combinations))


def histogram(
    name: str,
    help: str,
    *labels: str,
    bounds: tuple[float, ...] = SECONDS_BOUNDS,
    max_combinations: int = MAX_COMBINATIONS,
) -> Histogram:
    """Create a histogram, by default of seconds."""
    return _register(Histogram(name, help, labels, bounds, max_combinations))


def collect_families() -> list[MetricFamily]:
    """Return the families of all meters of this process, by name."""
    return [_meters[name].family() for name in sorted(_meters)]


def gauge_family(
    name: str, help: str, value: float, aggregation: ProcessAggregation
) -> MetricFamily:
    """Return a family with one value that was just read."""
    return MetricFamily(
        name, MetricKind.GAUGE, help, (), [MetricPoint((), value)], aggregation=aggregation
    )


def info_family(name: str, help: str, labels: Mapping[str, str]) -> MetricFamily:
    """Return a family of constant labels."""
    points = [MetricPoint(tuple(labels.values()), 1)]
    return MetricFamily(
        name, MetricKind.INFO, help, tuple(labels), points, aggregation=ProcessAggregation.SAME
    )
