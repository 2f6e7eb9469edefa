"""The commands `merganser connector …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import EXIT_FAILURE, CommandError

if TYPE_CHECKING:
    from merganser.commands.connector_operations import ConnectorChoice
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from models.store.columns import ColumnRow
    from resolvers.connectors.check import ConnectorCheckResult

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ConnectorIdOrName = Annotated[str, typer.Argument(metavar="ID", help="Its id, or its name.")]

EXIT_INTERRUPTED = 130
MAX_SHOWN_FOLDERS = 20
STAGE_TITLES = {
    "RESOLVE": "name",
    "CONNECT": "connection",
    "TLS": "TLS",
    "GREETING": "greeting",
    "LOGIN": "login",
    "LIST": "folders",
}


def list_connectors(
    user: Annotated[
        str | None, typer.Option("--user", "-u", help="Only of this user: name or address.")
    ] = None,
    failing: Annotated[
        bool | None,
        typer.Option("--failing/--working", help="Only whose last run failed, or did not."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List connectors: the accounts elsewhere whose mail comes here.

    Example: merganser connector list --user ada

    Example: merganser connector list --failing --json
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.terminal_tables import print_table

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await connectors.list_connectors(environment, user, is_failing=failing)

    found = run_in_environment(run_operation)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    titles = ("id", "name", "user", "protocol", "host", "active", "last success", "error")
    print_table(titles, [_table_row(each) for each in found])


def _table_row(found: dict[str, Any]) -> list[str]:
    success = (found["last_success_at"] or "never")[:16].replace("T", " ")
    active = "running" if found["running"] else "yes" if found["active"] else "no"
    server = f"{found['host']}:{found['port']}"
    cells = (found["id"], found["name"], found["user"], found["protocol"], server)
    return [*(str(each or "") for each in cells), active, success, found["error"] or ""]


def check_connector(which: ConnectorIdOrName, as_json: JsonOption = False) -> None:
    """Sign in with the stored password, and tell stage by stage what works. Nothing is fetched.

    Ends with 1 where a stage fails.

    Example: merganser connector check con_AZpSKEwoAAE
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "tuple[ConnectorChoice, ConnectorCheckResult]":
        return await connectors.check_connector(environment, which)

    one, found = run_in_environment(run_operation)
    if as_json:
        stages = [{"stage": each.stage, "ok": each.ok, "said": each.error} for each in found.stages]
        report = {
            "id": one.global_id,
            "name": one.name,
            "ok": found.failure is None,
            "stages": stages,
            "folders": found.mailbox_paths,
            "capabilities": found.capabilities,
        }
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_check(found)
    if found.failure is not None:
        raise typer.Exit(EXIT_FAILURE)


def _print_check(found: "ConnectorCheckResult") -> None:
    from rich.text import Text

    from merganser.commands.terminal_tables import print_table

    rows = [
        (
            Text("ok", "green") if each.ok else Text("failed", "bold red"),
            STAGE_TITLES.get(each.stage, each.stage),
            each.error,
        )
        for each in found.stages
    ]
    print_table(("", "stage", "said"), rows)
    if found.mailbox_paths:
        hidden_count = len(found.mailbox_paths) - MAX_SHOWN_FOLDERS
        typer.echo(f"{len(found.mailbox_paths)} folders:")
        for name in found.mailbox_paths[:MAX_SHOWN_FOLDERS]:
            typer.echo(f"  {name}")
        if hidden_count > 0:
            typer.echo(f"  and {hidden_count} more")
    if found.capabilities:
        typer.echo(f"The server offers {' '.join(found.capabilities)}")


def run_connectors(
    which: Annotated[list[str], typer.Argument(metavar="ID...", help="Their ids, or names.")],
    trial: Annotated[
        bool, typer.Option("--trial", help="Store nothing and delete nothing: only look.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch what is new, also for connectors that are switched off, one after another.

    A server may be running: whoever takes a run first does it, and this command follows it. Ctrl-C
    ends it at its next safe point: what has come stays, and the next run goes on from there. Ends
    with 1 where a run failed.

    Example: merganser connector run con_AZpSKEwoAAE

    Example: merganser connector run work private --trial
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.connector_progress import RunProgressBars
    from merganser.commands.environment_run import run_in_environment

    bars = RunProgressBars(trial)
    ending = connectors.InterruptHandler(bars.print_stop_message)

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "list[tuple[ConnectorChoice, ColumnRow]]":
        runs_by_connector = {
            one.connector_id: one
            for one in [await connectors.find_connector(environment, each) for each in which]
        }
        order = connectors.ConnectorRunOrder(
            list(runs_by_connector.values()), trial, bars.start_run, ending
        )
        with bars:
            return await connectors.run_connectors(environment, order)

    try:
        runs = run_in_environment(run_operation)
    except (KeyboardInterrupt, asyncio.CancelledError):
        text = "left at once: what has come stays, and the next run goes on from there"
        raise CommandError(text, exit_code=EXIT_INTERRUPTED) from None
    found = [connectors.run_as_json(one, row) for one, row in runs]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for each in found:
            _print_run(each)
    if ending.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if any(each["state"] != "SUCCEEDED" and not each["listening"] for each in found):
        raise typer.Exit(EXIT_FAILURE)


def _print_run(found: dict[str, Any]) -> None:
    from rich.filesize import decimal

    brought = "would be brought" if found["trial"] else "brought"
    summary = (
        f"{found['imported']} messages {brought}, {found['skipped']} left out, "
        f"{found['deleted_remote']} deleted elsewhere; "
        f"{decimal(found['bytes'])} in {found['seconds']:.1f} s"
    )
    if found["state"] == "FAILED":
        at = f" at {found['stage']}" if found["stage"] else ""
        typer.echo(f"{found['name']}: failed{at}: {found['error']}", err=True)
    elif found["state"] == "CANCELLED":
        typer.echo(f"{found['name']}: ended before all had come", err=True)
    listens = "; the server listens for more" if found["listening"] else ""
    typer.echo(f"{found['name']}: {summary}{listens}.")


def print_log(which: ConnectorIdOrName) -> None:
    """Print what happened in the last run, line by line; times are UTC.

    Example: merganser connector log con_AZpSKEwoAAE
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "tuple[ConnectorChoice, list[str] | None]":
        return await connectors.load_last_log(environment, which)

    one, lines = run_in_environment(run_operation)
    if lines is None:
        raise CommandError(f"{one.name} has not run yet")
    for line in lines:
        typer.echo(line)


def connector_commands() -> typer.Typer:
    """Create the command group `connector`."""
    group = typer.Typer(help="List, check and run connectors.", no_args_is_help=True)
    group.command("list")(list_connectors)
    group.command("check")(check_connector)
    group.command("run")(run_connectors)
    group.command("log")(print_log)
    return group
