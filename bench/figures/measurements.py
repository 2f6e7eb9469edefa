"""Figures: how many, how long, and for how much CPU."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run has shown. Latencies are in milliseconds, `cpu` in µs of the server each."""

    connections: int
    count: int
    seconds: float
    p50: float
    p99: float
    cpu: float
    cpu_behind: float = 0.0  # for what each one leaves to do behind its answer
    late: int = 0  # given up by the server's deadline; they are not counted

    @property
    def rate(self) -> float:
        """How many in a second."""
        return self.count / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The figure in plain values."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Line:
    """A figure with its name and that of the hand-written floor, where there is one."""

    name: str
    ours: Figure
    floor: Figure | None = None
    plain: Figure | None = None  # Strawberry as it comes

    def ratio(self, what: str) -> float | None:
        """How many times the floor's; None without a floor, or where that took no time."""
        least = float(getattr(self.floor, what)) if self.floor else 0.0
        return float(getattr(self.ours, what)) / least if least else None

    def as_json(self) -> dict[str, Any]:
        """The line in plain values."""
        return {
            "name": self.name,
            "ours": self.ours.as_json(),
            "floor": self.floor and self.floor.as_json(),
            "plain": self.plain and self.plain.as_json(),
            "ratios": {what: self.ratio(what) for what in ("rate", "p50", "p99", "cpu")},
        }


@dataclass(frozen=True, slots=True)
class Fact:
    """A measured value that has no floor."""

    name: str
    value: float
    unit: str


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed; of none it is 0."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def figure(connections: int, latencies: Sequence[float], seconds: float, cpu: float) -> Figure:
    """Sum up latencies in seconds, and the seconds of CPU they took together."""
    count = len(latencies)
    return Figure(
        connections,
        count,
        seconds,
        percentile(latencies, 0.5) * 1e3,
        percentile(latencies, 0.99) * 1e3,
        cpu / max(count, 1) * 1e6,
    )
