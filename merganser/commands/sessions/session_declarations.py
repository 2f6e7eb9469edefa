"""Declarations of the commands `merganser session …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption, PatternOption, UserOption

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.sessions.session_commands")
def list_sessions(
    user: UserOption = None,
    pattern: PatternOption = None,
    service: Annotated[
        list[str] | None,
        typer.Option(help="WEBSOCKET, EVENT_STREAM, SMTP, SUBMISSION or LMTP; can be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the open sessions of all nodes, the newest first.

    Without --user and --pattern, sessions without a user are listed too. The exit code is 1 if a
    node does not answer.

    Example: merganser session list --service SUBMISSION
    """


@declarations.command("terminate")
@implemented_in("merganser.commands.sessions.session_commands")
def terminate_sessions(
    user: UserOption = None,
    pattern: PatternOption = None,
    session: Annotated[
        list[str] | None,
        typer.Option("--session", help="Global ID of a session; can be repeated."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Text for the clients: at most 120 printable characters.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also cancel running operations and messages.")
    ] = False,
    revoke_tokens: Annotated[
        bool, typer.Option("--revoke-tokens", help="Also revoke all access tokens of the users.")
    ] = False,
) -> None:
    """End sessions on all nodes, and print their number.

    Name either users or sessions.

    Example: merganser session terminate --user ada --reason "The server moves"

    Example: merganser session terminate --pattern "guest*" --force
    """
