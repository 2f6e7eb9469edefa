"""Progress bar of a command."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn


def create_progress_bar(*columns: "str | ProgressColumn") -> "Bar":
    """Create a progress bar on stderr. It is hidden if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
