"""Declarations of the commands `merganser token …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption
from models.users.roles import Role, Scope

declarations = typer.Typer()


@declarations.command("create")
@implemented_in("merganser.commands.users.api_key_commands")
def create_api_key(
    name: Annotated[str, typer.Option(help="What it is for.")],
    user: Annotated[
        str | None, typer.Option(help="Whose it is; without, it is the platform's own.")
    ] = None,
    role: Annotated[Role, typer.Option(help="What it may do at most.")] = Role.USER,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it is good for; again for more. Else all.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="It changes nothing.")] = False,
    expires: Annotated[
        str | None, typer.Option(help='When it ends: "30 days", or a date as 2031-12-24.')
    ] = None,
) -> None:
    """Make an API key, and print its secret: once, here, and never again.

    Example: merganser token create --name backup --user ada --scope MAIL_READ --read-only

    Example: merganser token create --name root --role ROOT
    """


@declarations.command("list")
@implemented_in("merganser.commands.users.api_key_commands")
def list_api_keys(as_json: JsonOption = False) -> None:
    """List all API keys, without their secrets.

    Example: merganser token list
    """


@declarations.command("revoke")
@implemented_in("merganser.commands.users.api_key_commands")
def revoke_api_keys(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `merganser token list` shows them.")],
) -> None:
    """Delete API keys, all or none. A running server forgets them within 5 seconds.

    Example: merganser token revoke key_AZpSKEwoAAE
    """
