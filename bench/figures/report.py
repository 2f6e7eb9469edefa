"""Print the figures as tables, and write them as JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bench.figures.goals import evaluate_goals
from bench.figures.measurements import ComparedFigure, MeasuredValue

PIPE_WIDTH = 200  # columns of a pipe
MAX_SHOWN_ERRORS = 3  # errors


@dataclass
class BenchmarkResults:
    """The results of one benchmark run. The field names are keys of the report."""

    store: str
    messages: int
    lines: list[ComparedFigure] = field(default_factory=list)
    facts: list[MeasuredValue] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # from the server's log
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])

    def as_json(self) -> dict[str, Any]:
        """Return the results as JSON values, with properties of the machine."""
        return {
            "store": self.store,
            "messages": self.messages,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "errors": self.errors,
            "load_before": self.load_before,
            "load_after": os.getloadavg()[0],
            "lines": [line.as_json() for line in self.lines],
            "facts": [asdict(fact) for fact in self.facts],
            "goals": [goal._asdict() for goal in evaluate_goals(self.lines, self.facts)],
        }


def write_json_report(results_of_stores: Sequence[BenchmarkResults], path: Path) -> None:
    """Write the results of all databases into a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = [results.as_json() for results in results_of_stores]
    path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")


def format_figure(figure: ComparedFigure) -> str:
    """Return a figure of Merganser as a line of text."""
    merganser_figure = figure.merganser
    return (
        f"{figure.name:45} {merganser_figure.rate:8,.0f} /s  p50 {merganser_figure.p50:7.2f} ms  "
        f"p99 {merganser_figure.p99:7.2f} ms  CPU {merganser_figure.cpu:7,.0f} µs"
    )


def print_report(results: BenchmarkResults) -> None:
    """Print the results as tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(_figures_table(results.lines))
    console.print(_values_table(results.facts))
    console.print(_goals_table(results))
    for line in results.errors[:MAX_SHOWN_ERRORS]:
        console.print(
            f"one of {len(results.errors)} errors in the server log: {line}", markup=False
        )
    load_after = os.getloadavg()[0]
    console.print(
        f"{results.store}, {results.messages} messages, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores shared with the client; load average "
        f"{results.load_before:.1f} before, {load_after:.1f} after. In brackets: ratio to the "
        "baseline server, measured in turn. Strawberry: the same types and resolvers with "
        "Strawberry's own schema, executor and view. CPU: of the server process."
    )
    if max(results.load_before, load_after) > (os.cpu_count() or 1):
        console.print("The machine was busy: latencies include waiting for a CPU core.")


def _figures_table(lines: Sequence[ComparedFigure]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("workload")
    for name in ("connections", "requests/s", "p50 ms", "p99 ms", "CPU µs"):
        table.add_column(name, justify="right")
    for name in ("baseline: /s", "CPU µs", "Strawberry: /s", "CPU µs", "requests"):
        table.add_column(name, justify="right")
    last_name = ""
    for line in lines:
        merganser_figure, baseline, strawberry = line.merganser, line.baseline, line.strawberry
        later_cpu = (
            f" + {merganser_figure.cpu_after_response:,.0f}"
            if merganser_figure.cpu_after_response
            else ""
        )
        table.add_row(
            line.name if line.name != last_name else "",
            str(merganser_figure.connections),
            _figure_cell(line, "rate", ".0f"),
            _figure_cell(line, "p50", ".1f"),
            _figure_cell(line, "p99", ".1f"),
            _figure_cell(line, "cpu", ".0f") + later_cpu,
            f"{baseline.rate:,.0f}" if baseline else "",
            f"{baseline.cpu:,.0f}" if baseline else "",
            f"{strawberry.rate:,.0f}" if strawberry else "",
            f"{strawberry.cpu:,.0f}" if strawberry else "",
            f"{merganser_figure.count} + {merganser_figure.late} over deadline"
            if merganser_figure.late
            else str(merganser_figure.count),
        )
        last_name = line.name
    return table


def _figure_cell(line: ComparedFigure, field_name: str, number_format: str) -> str:
    ratio = line.ratio_to_baseline(field_name)
    ratio_text = "" if ratio is None else f" (x{ratio:.2f})"
    return f"{getattr(line.merganser, field_name):,{number_format}}{ratio_text}"


def _values_table(facts: Sequence[MeasuredValue]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("value")
    table.add_column("", justify="right")
    table.add_column("")
    for fact in facts:
        table.add_row(fact.name, f"{fact.value:,.2f}", fact.unit)
    return table


def _goals_table(results: BenchmarkResults) -> Table:
    """Return the table of goals with required and measured values."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("goal", "required", "measured", ""):
        table.add_column(name)
    for goal in evaluate_goals(results.lines, results.facts):
        table.add_row(goal.name, goal.required, goal.measured, "met" if goal.is_met else "not met")
    return table
