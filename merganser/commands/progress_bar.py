"""Progress bar of a command."""

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def create_progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Create a progress bar on stderr. It is hidden if stderr is not a terminal."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
