"""Implementation of `merganser init`."""

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def init(system: bool) -> None:
    """Create or migrate the database and print the data folder, or create the files in /etc."""
    if system:
        _create_system_files()
    else:
        run_in_environment(_print_data_folder, migrate=True)


async def _print_data_folder(_environment: Environment, settings: Settings) -> None:
    typer.echo(f"The store is ready. Its data is in {settings.data.absolute()}.")


def _create_system_files() -> None:
    # the group database exists on Unix only, and other uses of the command do not need it
    from merganser.commands.server import system_files  # noqa: PLC0415

    folder = system_files.SYSTEM_FOLDER
    created = system_files.create_missing_system_files(folder, system_files.service_group_id())
    for path in created:
        typer.echo(f"Created {path}.")
    if not created:
        typer.echo(f"The files in {folder} exist, and were not changed.")
    typer.echo(system_files.REMAINING_STEPS.format(folder=folder))
