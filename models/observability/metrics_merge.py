"""Merges the metrics of several processes into those of a server."""

from collections.abc import Iterable, Sequence
from operator import add

import orjson

from models.observability.metrics import OTHER, Across, Family, Kind, Labels, Point

CUMULATIVE = (Kind.COUNTER, Kind.HISTOGRAM)
WORKER = "worker"
MOST = 1000  # of labels that are kept over restarts, since a process may restart many times


def merged(counted: Iterable[tuple[str, bool, Sequence[Family]]]) -> list[Family]:
    """Merge the families of processes, each with its name and whether it is running.

    From a process that has ended only the sums are used, so that no sum decreases.
    """
    found: dict[str, Family] = {}
    for name, up, families in counted:
        for family in families:
            if not up and not _adds_up(family):
                continue
            own = _named(family, name) if family.across is Across.EACH else family
            there = found.get(family.name)
            points = _summed(there.points if there else (), own.points)
            found[family.name] = own._replace(points=points)
    return list(found.values())


def _named(family: Family, worker: str) -> Family:
    points = [Point((*p.labels, worker), p.value, p.counts) for p in family.points]
    return family._replace(labels=(*family.labels, WORKER), points=points)


def carried(before: Sequence[Family], now: Sequence[Family]) -> list[Family]:
    """Add the counts of an earlier run of a process to its current ones."""
    then = {family.name: family for family in before if _adds_up(family)}
    return [
        family._replace(points=_summed(then[family.name].points, family.points, MOST))
        if family.name in then
        else family
        for family in now
    ]


def _adds_up(family: Family) -> bool:
    return family.kind in CUMULATIVE and family.across is Across.SUM


def _summed(
    first: Sequence[Point], second: Sequence[Point], most: int | None = None
) -> list[Point]:
    """Add points with the same labels; above `max_combinations` new labels count as OTHER."""
    found: dict[Labels, Point] = {point.labels: point for point in first}
    for point in second:
        labels = point.labels
        if most is not None and labels not in found and len(found) >= most:
            labels = (OTHER,) * len(labels)
        there = found.get(labels)
        counts = tuple(map(add, there.counts, point.counts)) if there else point.counts
        found[labels] = Point(labels, point.value + (there.value if there else 0), counts)
    return list(found.values())


def packed(families: Sequence[Family]) -> bytes:
    """Serialize families as JSON."""
    return orjson.dumps(families, default=tuple)


def unpacked(text: bytes) -> list[Family]:
    """Convert the JSON of `serialize_families`."""
    return [
        Family(
            name,
            Kind(kind),
            words,
            tuple(labels),
            [Point(tuple(names), value, tuple(counts)) for names, value, counts in points],
            tuple(bounds),
            Across(across),
        )
        for name, kind, words, labels, points, bounds, across in orjson.loads(text)
    ]
