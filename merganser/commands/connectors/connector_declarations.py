"""Declarations of the commands `merganser connector …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

ConnectorIdOrName = Annotated[str, typer.Argument(metavar="ID", help="Its id, or its name.")]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.connectors.connector_commands")
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
    """List connectors: accounts on other servers that mail is fetched from.

    Example: merganser connector list --user ada

    Example: merganser connector list --failing --json
    """


@declarations.command("check")
@implemented_in("merganser.commands.connectors.connector_commands")
def check_connector(which: ConnectorIdOrName, as_json: JsonOption = False) -> None:
    """Sign in with the stored password, and tell stage by stage what works. Nothing is fetched.

    Ends with 1 where a stage fails.

    Example: merganser connector check con_AZpSKEwoAAE
    """


@declarations.command("run")
@implemented_in("merganser.commands.connectors.connector_run_command")
def run_connectors(
    which: Annotated[list[str], typer.Argument(metavar="ID...", help="Their ids, or names.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Store nothing and delete nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch new mail with connectors, one after another, even if they are switched off.

    A server can run at the same time: the first process that takes a run executes it, and this
    command follows it. Ctrl-C stops the run at its next safe point: fetched mail stays, and the
    next run continues from there. The exit code is 1 if a run failed.

    Example: merganser connector run con_AZpSKEwoAAE

    Example: merganser connector run work private --dry-run
    """


@declarations.command("log")
@implemented_in("merganser.commands.connectors.connector_commands")
def print_log(which: ConnectorIdOrName) -> None:
    """Print what happened in the last run, line by line; times are UTC.

    Example: merganser connector log con_AZpSKEwoAAE
    """
