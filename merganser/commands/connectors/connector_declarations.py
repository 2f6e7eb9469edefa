"""Declarations of the commands `merganser connector …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

ConnectorIdOrName = Annotated[
    str, typer.Argument(metavar="ID", help="ID or name of the connector.")
]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.connectors.connector_commands")
def list_connectors(
    user: Annotated[
        str | None,
        typer.Option(
            "--user", "-u", help="List only connectors of this user: username or address."
        ),
    ] = None,
    failing: Annotated[
        bool | None,
        typer.Option(
            "--failing/--working",
            help="List only connectors whose last run failed, or only the others.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List connectors, which fetch mail from accounts on remote servers.

    Example: merganser connector list --user ada

    Example: merganser connector list --failing --json
    """


@declarations.command("check")
@implemented_in("merganser.commands.connectors.connector_commands")
def check_connector(connector_name: ConnectorIdOrName, as_json: JsonOption = False) -> None:
    """Sign in with the stored password, and print the result of each stage. Fetches nothing.

    The exit code is 1 if a stage fails.

    Example: merganser connector check con_AZpSKEwoAAE
    """


@declarations.command("run")
@implemented_in("merganser.commands.connectors.connector_run_command")
def run_connectors(
    connector_names: Annotated[
        list[str], typer.Argument(metavar="ID...", help="IDs or names of connectors.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Store nothing and delete nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch new mail with connectors, one after another, even if they are inactive.

    A server can run at the same time: the first process that takes a run executes it, and this
    command follows it. Ctrl-C stops the run at its next safe point: fetched mail stays, and the
    next run continues from there. The exit code is 1 if a run failed.

    Example: merganser connector run con_AZpSKEwoAAE

    Example: merganser connector run work private --dry-run
    """


@declarations.command("log")
@implemented_in("merganser.commands.connectors.connector_commands")
def print_log_of_last_run(connector_name: ConnectorIdOrName) -> None:
    """Print the log of the last run. Times are UTC.

    Example: merganser connector log con_AZpSKEwoAAE
    """
