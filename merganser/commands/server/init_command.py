"""Implementation of `merganser init`."""

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def init() -> None:
    """Create or migrate the database, and print the data folder."""
    run_in_environment(_print_data_folder, migrate=True)


async def _print_data_folder(_environment: Environment, settings: Settings) -> None:
    typer.echo(f"The store is ready. Its data is in {settings.data.absolute()}.")
