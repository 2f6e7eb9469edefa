"""The progress of a connector run: a bar on a terminal, lines otherwise."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from merganser.commands.progress_bar import progress_bar
from models.admin.tasks import TaskState

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from merganser.commands.connector_operations import Named, Told
    from models.store.columns import Picked

STOPPING = "it ends at the next safe point; Ctrl-C again leaves at once"


@dataclass
class Bars(AbstractContextManager["Bars"]):
    """Shows the progress of runs, one after another."""

    trial: bool = False
    bar: "Progress" = field(default_factory=lambda: progress_bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[came]}", markup=False),
        TimeElapsedColumn(),
    ))  # fmt: skip

    def __enter__(self) -> "Bars":
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, problem, trace)

    @property
    def watched(self) -> bool:
        """True if stderr is a terminal."""
        return not self.bar.disable

    def stopping(self) -> None:
        """Confirm the first Ctrl-C."""
        self._say(f"merganser: {STOPPING}")

    def _say(self, line: str) -> None:
        if self.watched:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(line, err=True)

    def began(self, one: "Named", row: "Picked") -> "Told":
        """Begin to show a run. Returns the function that takes each later row of the run."""
        if row.trial is not self.trial:
            kind = "a" if row.trial else "no"
            self._say(f"{one.name}: a run is under way, which is {kind} trial: it is followed")
        elif row.state is TaskState.RUNNING:
            self._say(f"{one.name}: another process runs it, and it is followed")
        task = self.bar.add_task(one.name, total=None, came="")
        return _Shown(self, one.name, task).told


@dataclass
class _Shown:
    """The counts of a run that were shown last."""

    bars: Bars
    name: str
    task: "TaskID"
    since: float = field(default_factory=time.monotonic)
    folder: str | None = None
    seen: int = 0  # in all folders so far
    handled: int = 0  # imported or skipped
    base: int = 0
    before: int = 0
    first: int | None = None  # None before the first row

    def told(self, row: "Picked") -> None:
        """Show the counts of the run's row."""
        if row.finished_at:
            self.bars.bar.update(self.task, visible=False)
            return
        if row.folder != self.folder:
            self.folder = row.folder
            self.base, self.before = self.seen, self.handled
            if row.folder is not None and not self.bars.watched:
                self.bars._say(f"{self.name}: {row.folder}; {_came(row)}")  # noqa: SLF001
        self.seen, self.handled = row.seen, row.imported + row.skipped
        self.first = row.bytes if self.first is None else self.first
        rate = (row.bytes - self.first) / max(time.monotonic() - self.since, 0.1)
        self.bars.bar.update(
            self.task,
            description=f"{self.name}: {row.folder}" if row.folder else self.name,
            completed=self.base + self.handled - self.before,
            total=row.seen or None,
            came=f"{_came(row)}, {decimal(int(rate))}/s",
        )


def _came(row: "Picked") -> str:
    return f"{row.imported} of {row.seen} brought, {decimal(row.bytes)}"
