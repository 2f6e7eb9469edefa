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

from bench.figures.goals import goals
from bench.figures.measurements import Fact, Line

WIDE = 160  # columns of a pipe
SHOWN = 3  # errors


@dataclass
class Results:
    """The results of one benchmark run. The field names are keys of the report."""

    store: str
    messages: int
    lines: list[Line] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
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
            "goals": [goal._asdict() for goal in goals(self.lines, self.facts)],
        }


def written(all_: Sequence[Results], path: Path) -> None:
    """Write the results of all databases into a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = [results.as_json() for results in all_]
    path.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")


def line(one: Line) -> str:
    """Return a figure of Merganser as a line of text."""
    ours = one.ours
    return (
        f"{one.name:45} {ours.rate:8,.0f} /s  p50 {ours.p50:7.2f} ms  "
        f"p99 {ours.p99:7.2f} ms  CPU {ours.cpu:7,.0f} µs"
    )


def shown(results: Results) -> None:
    """Print the results as tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print(_lines(results.lines))
    console.print(_facts(results.facts))
    console.print(_goals(results))
    for line in results.errors[:SHOWN]:
        console.print(f"the server logged, of {len(results.errors)}: {line}", markup=False)
    console.print(
        f"{results.store}, {results.messages} messages, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores shared with the client; load average "
        f"{results.load_before:.1f} before, {os.getloadavg()[0]:.1f} now. In brackets: times the "
        "floor's, measured in turn with ours; plain is Strawberry as it comes. CPU is the server "
        "process's own."
    )


def _lines(lines: Sequence[Line]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("what")
    for name in ("conn.", "each second", "p50 ms", "p99 ms", "CPU µs", "floor: /s", "CPU µs"):
        table.add_column(name, justify="right")
    for name in ("plain: /s", "CPU µs", "n"):
        table.add_column(name, justify="right")
    known = ""
    for line in lines:
        ours, floor, plain = line.ours, line.floor, line.plain
        behind = f" + {ours.cpu_behind:,.0f}" if ours.cpu_behind else ""
        table.add_row(
            line.name if line.name != known else "",
            str(ours.connections),
            _cell(line, "rate", ".0f"),
            _cell(line, "p50", ".1f"),
            _cell(line, "p99", ".1f"),
            _cell(line, "cpu", ".0f") + behind,
            f"{floor.rate:,.0f}" if floor else "",
            f"{floor.cpu:,.0f}" if floor else "",
            f"{plain.rate:,.0f}" if plain else "",
            f"{plain.cpu:,.0f}" if plain else "",
            f"{ours.count} + {ours.late} late" if ours.late else str(ours.count),
        )
        known = line.name
    return table


def _cell(line: Line, what: str, form: str) -> str:
    ratio = line.ratio(what)
    behind = "" if ratio is None else f" (x{ratio:.2f})"
    return f"{getattr(line.ours, what):,{form}}{behind}"


def _facts(facts: Sequence[Fact]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("besides")
    table.add_column("", justify="right")
    table.add_column("")
    for fact in facts:
        table.add_row(fact.name, f"{fact.value:,.2f}", fact.unit)
    return table


def _goals(results: Results) -> Table:
    """Return the table of goals with required and measured values."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("goal", "asked", "reached", ""):
        table.add_column(name)
    for goal in goals(results.lines, results.facts):
        table.add_row(goal.name, goal.asked, goal.reached, "holds" if goal.holds else "missed")
    return table
