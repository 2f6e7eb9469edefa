"""Implementation of `merganser connector run`."""

import asyncio
from typing import Any

import typer
from rich.filesize import decimal

from merganser.commands.connectors import connector_operations
from merganser.commands.connectors.connector_progress import RunProgressBars
from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json
from merganser.errors import EXIT_FAILURE, CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment

EXIT_INTERRUPTED = 130


def run_connectors(connector_names: list[str], dry_run: bool, as_json: bool) -> None:
    """Run connectors one after another, and print the results of the runs."""
    bars = RunProgressBars(dry_run)
    interrupts = connector_operations.InterruptHandler(bars.print_stop_message)

    async def run_operation(
        environment: Environment, _settings: Settings
    ) -> list[connector_operations.FinishedConnectorRun]:
        connectors_by_id = {
            connector.connector_id: connector
            for connector in [
                await connector_operations.find_connector_or_fail_command(
                    environment, connector_name
                )
                for connector_name in connector_names
            ]
        }
        order = connector_operations.ConnectorRunOrder(
            list(connectors_by_id.values()), dry_run, bars.start_run_display, interrupts
        )
        with bars:
            return await connector_operations.run_connectors(environment, order)

    try:
        runs = run_in_environment(run_operation)
    except (KeyboardInterrupt, asyncio.CancelledError):
        text = "Left at once. Imported messages remain, and the next run continues from there."
        raise CommandError(text, exit_code=EXIT_INTERRUPTED) from None
    results = [connector_operations.run_as_json(connector, row) for connector, row in runs]
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
    brought = "would be imported" if result["dry_run"] else "imported"
    summary = (
        f"{result['imported_count']} messages {brought}, "
        f"{result['skipped_count']} skipped, {result['deleted_remote_count']} "
        f"deleted on the server; {decimal(result['size'])} in "
        f"{result['seconds']:.1f} s"
    )
    if result["state"] == "FAILED":
        at = f" at {result['stage']}" if result["stage"] else ""
        typer.echo(f"{result['name']}: failed{at}: {result['error']}", err=True)
    elif result["state"] == "CANCELLED":
        typer.echo(f"{result['name']}: cancelled before all messages were fetched", err=True)
    listens = "; waiting for new messages" if result["listening"] else ""
    typer.echo(f"{result['name']}: {summary}{listens}.")
