"""Numbers of several processes as those of one."""

from collections.abc import Iterable, Sequence
from operator import add

import orjson

from models.observability.metrics import OTHER, Across, Family, Kind, Labels, Point

CUMULATIVE = (Kind.COUNTER, Kind.HISTOGRAM)
WORKER = "worker"
MOST = 1000  # combinations of labels that are carried on: a process may begin anew many times


def merged(counted: Iterable[tuple[str, bool, Sequence[Family]]]) -> list[Family]:
    """What these have counted together: each has a name, and whether it is up, and its numbers.

    Of one that is not up only what it has added to is told, so that no sum goes down.
    """
    found: dict[str, Family] = {}
    for name, up, families in counted:
        for family in families:
            if not up and not _adds_up(family):
                continue
            one = _named(family, name) if family.across is Across.EACH else family
            there = found.get(family.name)
            points = _summed(there.points if there else (), one.points)
            found[family.name] = one._replace(points=points)
    return list(found.values())


def _named(family: Family, worker: str) -> Family:
    points = [Point((*p.labels, worker), p.value, p.counts) for p in family.points]
    return family._replace(labels=(*family.labels, WORKER), points=points)


def carried(before: Sequence[Family], now: Sequence[Family]) -> list[Family]:
    """What a process has counted, with what was counted before in its place."""
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
    """Both, added up where the labels are the same; beyond `most` what is new counts as OTHER."""
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
    """Numbers as bytes."""
    return orjson.dumps(families, default=tuple)


def unpacked(text: bytes) -> list[Family]:
    """Numbers that were packed."""
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
