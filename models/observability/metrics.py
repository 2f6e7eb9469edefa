"""What the process counts of itself: plain numbers, read when somebody looks.

Each module makes its meters at import, by `counter`, `histogram` and `level`, and feeds them
on the event loop's thread. A feed is one look into a dict: 0.2 µs. Labels are words of our
own, or names that somebody has judged; however many come, a meter keeps `most` combinations,
and the rest counts as OTHER.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

OTHER = "other"  # stands for all combinations of labels there was no room for
MOST = 200  # combinations of labels that a meter keeps
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
MANY = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0)

Labels = tuple[str, ...]


class Kind(StrEnum):
    """What a family of numbers is, in the words of OpenMetrics."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Across(StrEnum):
    """What a number of one process is beside those of others of the same server."""

    SUM = "sum"  # a part of the whole: they are added up
    EACH = "each"  # of that process alone: each is shown, with the name of its worker
    SAME = "same"  # the same wherever one asks: whoever is asked tells it


class Point(NamedTuple):
    """One number, or, of a histogram, the sum of what was noted and how much fell where.

    `counts` are those up to each bound, one by one, and last those above all bounds.
    """

    labels: Labels
    value: float
    counts: tuple[int, ...] = ()


class Family(NamedTuple):
    """The numbers of one name. Names end in their unit; that of a counter has no `_total`."""

    name: str
    kind: Kind
    help: str
    labels: Labels
    points: Sequence[Point]
    bounds: tuple[float, ...] = ()
    across: Across = Across.SUM


class Counter:
    """Counts up, for each combination of labels."""

    def __init__(self, name: str, help: str, labels: Labels = (), most: int = MOST) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.most = most
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, *labels: str, by: float = 1) -> None:
        """Count one more, or so many."""
        try:
            self._values[labels] += by
        except KeyError:
            self._begin(labels, by)

    def _begin(self, labels: Labels, by: float) -> None:
        labels = _room(self.labels, labels, len(self._values), self.most)
        self._values[labels] = self._values.get(labels, 0) + by

    def of(self, *labels: str) -> float:
        """What stands there."""
        return self._values.get(labels, 0)

    def family(self) -> Family:
        """All that was counted."""
        points = [Point(labels, value) for labels, value in self._values.items()]
        return Family(self.name, Kind.COUNTER, self.help, self.labels, points)


class Level(Counter):
    """Goes up and down: how many there are at this moment, in all processes together."""

    def family(self) -> Family:
        """How many there are."""
        return super().family()._replace(kind=Kind.GAUGE)


class Histogram:
    """Notes values: how many fell below which bound, and their sum."""

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
        """Note one value."""
        row = self._rows.get(labels) or self._begin(labels)
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def _begin(self, labels: Labels) -> list[float]:
        labels = _room(self.labels, labels, len(self._rows), self.most)
        return self._rows.setdefault(labels, [0] * (len(self.bounds) + 1) + [0.0])

    def family(self) -> Family:
        """All that was noted."""
        points = [
            Point(labels, row[-1], tuple(map(int, row[:-1]))) for labels, row in self._rows.items()
        ]
        return Family(self.name, Kind.HISTOGRAM, self.help, self.labels, points, self.bounds)


def _room(names: Labels, labels: Labels, taken: int, most: int) -> Labels:
    """These labels, or those of all the rest where no room is left."""
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
    """Make a counter; its name begins with merganser_ and has no `_total`."""
    return _kept(Counter(name, help, labels, most))


def level(name: str, help: str, *labels: str, most: int = MOST) -> Level:
    """Make a meter of how many there are."""
    return _kept(Level(name, help, labels, most))


def histogram(
    name: str, help: str, *labels: str, bounds: tuple[float, ...] = SECONDS, most: int = MOST
) -> Histogram:
    """Make a histogram, by default of seconds."""
    return _kept(Histogram(name, help, labels, bounds, most))


def families() -> list[Family]:
    """All that is counted in this process, by name."""
    return [_all[name].family() for name in sorted(_all)]


def gauge(name: str, help: str, value: float, across: Across) -> Family:
    """A number that somebody has just looked up."""
    return Family(name, Kind.GAUGE, help, (), [Point((), value)], across=across)


def info(name: str, help: str, facts: Mapping[str, str]) -> Family:
    """Facts that are all labels."""
    points = [Point(tuple(facts.values()), 1)]
    return Family(name, Kind.INFO, help, tuple(facts), points, across=Across.SAME)
