"""Implementation of `merganser connector run`."""

import asyncio
from typing import Any

import typer
from rich.filesize import decimal

from merganser.commands.connectors import connector_operations
from merganser.commands.connectors.connector_operations import ConnectorChoice
from merganser.commands.connectors.connector_progress import RunProgressBars
from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json
from merganser.errors import EXIT_FAILURE, CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.store.columns import ColumnRow

EXIT_INTERRUPTED = 130


def run_connectors(which: list[str], dry_run: bool, as_json: bool) -> None:
    """Run connectors one after another, and print the results of the runs."""
    bars = RunProgressBars(dry_run)
    interrupts = connector_operations.InterruptHandler(bars.print_stop_message)

    async def run_operation(
        environment: Environment, _settings: Settings
    ) -> list[tuple[ConnectorChoice, ColumnRow]]:
        connectors_by_id = {
            one.connector_id: one
            for one in [
                await connector_operations.find_connector(environment, each) for each in which
            ]
        }
        order = connector_operations.ConnectorRunOrder(
            list(connectors_by_id.values()), dry_run, bars.start_run, interrupts
        )
        with bars:
            return await connector_operations.run_connectors(environment, order)

    try:
        runs = run_in_environment(run_operation)
    except (KeyboardInterrupt, asyncio.CancelledError):
        text = "left at once: what has come stays, and the next run goes on from there"
        raise CommandError(text, exit_code=EXIT_INTERRUPTED) from None
    results = [connector_operations.run_as_json(one, row) for one, row in runs]
    if as_json:
        print_json(results)
    else:
        for result in results:
            _print_run(result)
    if interrupts.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(result["state"] != "SUCCEEDED" and not result["listening"] for result in results):
        raise typer.Exit(EXIT_FAILURE)


def _print_run(result: dict[str, Any]) -> None:
    brought = "would be brought" if result["dry_run"] else "brought"
    summary = (
        f"{result['imported_count']} messages {brought}, {result['skipped_count']} left out, "
        f"{result['deleted_remote_count']} deleted elsewhere; "
        f"{decimal(result['size'])} in {result['seconds']:.1f} s"
    )
    if result["state"] == "FAILED":
        at = f" at {result['stage']}" if result["stage"] else ""
        typer.echo(f"{result['name']}: failed{at}: {result['error']}", err=True)
    elif result["state"] == "CANCELLED":
        typer.echo(f"{result['name']}: ended before all had come", err=True)
    listens = "; the server listens for more" if result["listening"] else ""
    typer.echo(f"{result['name']}: {summary}{listens}.")
