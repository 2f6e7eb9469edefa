"""Measured values: counts, latencies and CPU time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadFigure:
    """The result of one run.

    Latencies are in milliseconds, `cpu` is µs of server CPU per request.
    """

    connections: int
    count: int
    seconds: float
    p50: float
    p99: float
    cpu: float
    cpu_after_response: float = 0.0  # µs of CPU for work after the response, per request
    late: int = 0  # ended by the server's deadline; not in `count`

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.count / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return {**asdict(self), "rate": self.rate}


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """A figure of Merganser with that of the baseline and of plain Strawberry, if measured.

    The field names are keys of the report.
    """

    name: str
    merganser: LoadFigure
    baseline: LoadFigure | None = None
    strawberry: LoadFigure | None = None

    def ratio_to_baseline(self, field_name: str) -> float | None:
        """Return Merganser's value divided by the baseline's; None without a baseline value."""
        baseline_value = float(getattr(self.baseline, field_name)) if self.baseline else 0.0
        return (
            float(getattr(self.merganser, field_name)) / baseline_value if baseline_value else None
        )

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "name": self.name,
            "merganser": self.merganser.as_json(),
            "baseline": self.baseline and self.baseline.as_json(),
            "strawberry": self.strawberry and self.strawberry.as_json(),
            "ratios": {
                what: self.ratio_to_baseline(what) for what in ("rate", "p50", "p99", "cpu")
            },
        }


@dataclass(frozen=True, slots=True)
class MeasuredValue:
    """A measured value without comparison."""

    name: str
    value: float
    unit: str


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value that this fraction of all values does not exceed; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] if ordered else 0.0


def figure_from_latencies(
    connection_count: int, latencies: Sequence[float], seconds: float, cpu_seconds: float
) -> LoadFigure:
    """Summarize latencies in seconds and the total CPU seconds."""
    count = len(latencies)
    return LoadFigure(
        connection_count,
        count,
        seconds,
        percentile(latencies, 0.5) * 1e3,
        percentile(latencies, 0.99) * 1e3,
        cpu_seconds / max(count, 1) * 1e6,
    )
