"""The progress of a connector run: a bar on a terminal, lines otherwise."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import typer
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from merganser.commands.connectors.connector_operations import ConnectorChoice, ShowProgress
from merganser.commands.progress_bar import create_progress_bar
from models.admin.tasks import TaskState
from models.store.columns import ColumnRow

STOP_MESSAGE = "The run ends at the next safe point. Press Ctrl-C again to leave at once."


@dataclass
class RunProgressBars(AbstractContextManager["RunProgressBars"]):
    """Shows the progress of runs, one after another."""

    is_dry_run: bool = False
    bar: Progress = field(default_factory=lambda: create_progress_bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[came]}", markup=False),
        TimeElapsedColumn(),
    ))  # fmt: skip

    def __enter__(self) -> "RunProgressBars":
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
    def is_visible(self) -> bool:
        """True if stderr is a terminal."""
        return not self.bar.disable

    def print_stop_message(self) -> None:
        """Confirm the first Ctrl-C."""
        self._print_line(f"merganser: {STOP_MESSAGE}")

    def _print_line(self, line: str) -> None:
        if self.is_visible:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(line, err=True)

    def start_run_display(self, connector: ConnectorChoice, run_row: ColumnRow) -> ShowProgress:
        """Begin to show a run. Returns the function that takes each later row of the run."""
        if run_row.dry_run is not self.is_dry_run:
            kind = "a" if run_row.dry_run else "no"
            self._print_line(
                f"{connector.name}: a run is in progress, which is {kind} dry run; following it"
            )
        elif run_row.state is TaskState.RUNNING:
            self._print_line(f"{connector.name}: another process runs it; following it")
        task = self.bar.add_task(connector.name, total=None, came="")
        return _RunProgress(self, connector.name, task).update


@dataclass
class _RunProgress:
    """The counts of a run that were shown last."""

    bars: RunProgressBars
    name: str
    task: TaskID
    started_at: float = field(default_factory=time.monotonic)
    folder: str | None = None
    seen_count: int = 0  # in all folders so far
    handled_count: int = 0  # imported or skipped
    seen_in_finished_folders: int = 0
    handled_in_finished_folders: int = 0
    bytes_at_start: int | None = None  # None before the first row

    def update(self, run_row: ColumnRow) -> None:
        """Show the counts of the run's row."""
        if run_row.finished_at:
            self.bars.bar.update(self.task, visible=False)
            return
        if run_row.folder != self.folder:
            self.folder = run_row.folder
            self.seen_in_finished_folders, self.handled_in_finished_folders = (
                self.seen_count,
                self.handled_count,
            )
            if run_row.folder is not None and not self.bars.is_visible:
                self.bars._print_line(f"{self.name}: {run_row.folder}; {_progress_text(run_row)}")  # noqa: SLF001
        self.seen_count, self.handled_count = (
            run_row.seen_count,
            run_row.imported_count + run_row.skipped_count,
        )
        self.bytes_at_start = run_row.size if self.bytes_at_start is None else self.bytes_at_start
        rate = (run_row.size - self.bytes_at_start) / max(time.monotonic() - self.started_at, 0.1)
        self.bars.bar.update(
            self.task,
            description=f"{self.name}: {run_row.folder}" if run_row.folder else self.name,
            completed=self.seen_in_finished_folders
            + self.handled_count
            - self.handled_in_finished_folders,
            total=run_row.seen_count or None,
            came=f"{_progress_text(run_row)}, {decimal(int(rate))}/s",
        )


def _progress_text(run_row: ColumnRow) -> str:
    return f"{run_row.imported_count} of {run_row.seen_count} imported, {decimal(run_row.size)}"
