"""Implementations of the commands `merganser connector …`, except `run`."""

from typing import Any

import typer
from rich.text import Text

from merganser.commands.connectors import connector_operations
from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json, print_table
from merganser.errors import EXIT_FAILURE, CommandError
from resolvers.connectors.check import ConnectorTestResult

MAX_SHOWN_FOLDERS = 20
STAGE_TITLES = {
    "RESOLVE": "name",
    "CONNECT": "connection",
    "TLS": "TLS",
    "GREETING": "greeting",
    "LOGIN": "login",
    "LIST": "mailboxes",
}


def list_connectors(user: str | None, failing: bool | None, as_json: bool) -> None:
    """Print all connectors or those of a user."""
    connectors = run_in_environment(
        lambda environment, _settings: connector_operations.load_connectors_as_json(
            environment, user, is_failing=failing
        )
    )
    if as_json:
        print_json(connectors)
        return
    titles = ("id", "name", "user", "protocol", "host", "active", "last success", "error")
    print_table(titles, [_connector_table_row(connector) for connector in connectors])


def _connector_table_row(connector: dict[str, Any]) -> list[str]:
    success = (connector["last_success_at"] or "never")[:16].replace("T", " ")
    active = "running" if connector["running"] else "yes" if connector["active"] else "no"
    server = f"{connector['host']}:{connector['port']}"
    cells = (connector["id"], connector["name"], connector["user"], connector["protocol"], server)
    return [*(str(cell or "") for cell in cells), active, success, connector["error"] or ""]


def check_connector(connector_name: str, as_json: bool) -> None:
    """Print the results of the stages of a check. The exit code is 1 if one failed."""
    connector, result = run_in_environment(
        lambda environment, _settings: connector_operations.check_connector(
            environment, connector_name
        )
    )
    if as_json:
        stages = [
            {"stage": stage.stage, "ok": stage.ok, "said": stage.message} for stage in result.stages
        ]
        report = {
            "id": connector.global_id,
            "name": connector.name,
            "ok": result.failure is None,
            "stages": stages,
            "folders": result.mailbox_paths,
            "folderCount": result.mailbox_count,
            "capabilities": result.capabilities,
        }
        print_json(report)
    else:
        _print_check(result)
    if result.failure is not None:
        raise typer.Exit(EXIT_FAILURE)


def _print_check(result: ConnectorTestResult) -> None:
    rows = [
        (
            Text("ok", "green") if stage.ok else Text("failed", "bold red"),
            STAGE_TITLES.get(stage.stage, stage.stage),
            stage.message,
        )
        for stage in result.stages
    ]
    print_table(("", "stage", "said"), rows)
    if result.mailbox_paths:
        hidden_count = result.mailbox_count - MAX_SHOWN_FOLDERS
        typer.echo(f"{result.mailbox_count} mailboxes:")
        for name in result.mailbox_paths[:MAX_SHOWN_FOLDERS]:
            typer.echo(f"  {name}")
        if hidden_count > 0:
            typer.echo(f"  and {hidden_count} more")
    if result.capabilities:
        typer.echo(f"The server offers {' '.join(result.capabilities)}")


def print_log_of_last_run(connector_name: str) -> None:
    """Print the log lines of a connector's last run."""
    connector, lines = run_in_environment(
        lambda environment, _settings: connector_operations.load_last_log(
            environment, connector_name
        )
    )
    if lines is None:
        raise CommandError(f"{connector.name} has not run yet.")
    for line in lines:
        typer.echo(line)
