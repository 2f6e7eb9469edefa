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
MOST = 200  # of labels in a meter
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
MANY = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0)

Labels = tuple[str, ...]


class Kind(StrEnum):
    """The type of a metric family in OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Across(StrEnum):
    """How the values of several processes of a server are combined."""

    SUM = "sum"  # they are added up
    EACH = "each"  # each is exported, with the name of its worker as label
    SAME = "same"  # they are the same in all processes, so one of them is exported


class Point(NamedTuple):
    """A value, or the data of a histogram: the sum of its values and their counts.

    `counts` has the number of values up to each bound, not cumulated, and last those above all
    bounds.
    """

    labels: Labels
    value: float
    counts: tuple[int, ...] = ()


class Family(NamedTuple):
    """The points of one metric name. Names end in their unit; counters have no `_total`."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    points: Sequence[Point]
    bounds: tuple[float, ...] = ()
    across: Across = Across.SUM


class Counter:
    """A value that only increases, for each combination of labels."""

    def __init__(self, name: str, help: str, labels: Labels = (), most: int = MOST) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.most = most
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Increase the value of these labels, by 1 or by `amount`."""
        try:
            self._values[labels] += by
        except KeyError:
            self._begin(labels, by)

    def _begin(self, labels: Labels, by: float) -> None:
        labels = _room(self.labels, labels, len(self._values), self.most)
        self._values[labels] = self._values.get(labels, 0) + by

    def of(self, *labels: str) -> float:
        """Return the value of these labels."""
        return self._values.get(labels, 0)

    def family(self) -> Family:
        """Return the current values as a family."""
        points = [Point(labels, value) for labels, value in self._values.items()]
        return Family(self.name, Kind.COUNTER, self.help, self.labels, points)


class Level(Counter):
    """A value that increases and decreases. The values of all processes are added up."""

    def family(self) -> Family:
        """Return the current values as a family of gauges."""
        return super().family()._replace(kind=Kind.GAUGE)


class Histogram:
    """Counts observed values by bounds, and adds them up."""

    def __init__(
        self,
        name: str,
        help: str,
        labels: Labels = (),
        bounds: tuple[float, ...] = SECONDS,
        most: int = MOST,
    ) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.bounds = bounds
        self.most = most
        self._rows: dict[Labels, list[float]] = {}  # a count for each bound, one more, the sum
        if not labels:
            self._begin(())

    def note(self, value: float, *labels: str) -> None:
        """Count one value for these labels."""
        row = self._rows.get(labels) or self._begin(labels)
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def _begin(self, labels: Labels) -> list[float]:
        labels = _room(self.labels, labels, len(self._rows), self.most)
        return self._rows.setdefault(labels, [0] * (len(self.bounds) + 1) + [0.0])

    def family(self) -> Family:
        """Return the current counts as a family."""
        points = [
            Point(labels, row[-1], tuple(map(int, row[:-1]))) for labels, row in self._rows.items()
        ]
        return Family(self.name, Kind.HISTOGRAM, self.help, self.labels, points, self.bounds)


def _room(names: Labels, labels: Labels, taken: int, most: int) -> Labels:
    """Return the labels, or OTHER for each if there is no room for another combination."""
    if len(labels) != len(names):
        raise TypeError(f"{len(names)} labels are needed: {', '.join(names)}")
    return labels if taken < most else (OTHER,) * len(names)


Meter = Counter | Histogram
Made = TypeVar("Made", bound=Meter)

_all: dict[str, Meter] = {}


def _kept(meter: Made) -> Made:
    if meter.name in _all:
        raise ValueError(f"there is a meter {meter.name} already")
    _all[meter.name] = meter
    return meter


def counter(name: str, help: str, *labels: str, most: int = MOST) -> Counter:
    """Create a counter. Its name begins with merganser_ and has no `_total`."""
    return _kept(Counter(name, help, labels, most))


def level(name: str, help: str, *labels: str, most: int = MOST) -> Level:
    """Create a meter of a current number, which increases and decreases."""
    return _kept(Level(name, help, labels, most))


def histogram(
    name: str, help: str, *labels: str, bounds: tuple[float, ...] = SECONDS, most: int = MOST
) -> Histogram:
    """Create a histogram, by default of seconds."""
    return _kept(Histogram(name, help, labels, bounds, most))


def families() -> list[Family]:
    """Return the families of all meters of this process, by name."""
    return [_all[name].family() for name in sorted(_all)]


def gauge(name: str, help: str, value: float, across: Across) -> Family:
    """Return a family with one value that was just read."""
    return Family(name, Kind.GAUGE, help, (), [Point((), value)], across=across)


def info(name: str, help: str, facts: Mapping[str, str]) -> Family:
    """Return a family of constant labels."""
    points = [Point(tuple(facts.values()), 1)]
    return Family(name, Kind.INFO, help, tuple(facts), points, across=Across.SAME)
