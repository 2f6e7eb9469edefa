"""Declarations of the commands `merganser api-key …`."""
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
    name: Annotated[str, typer.Option(help="Name of the key, which tells its use.")],
    user: Annotated[
        str | None,
        typer.Option(
            help="Owner. Default: the key belongs to the platform. It then requires --domain, or "
            "at least the role ADMIN."
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="Role of the key.")] = Role.USER,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="Domain that the key is restricted to; can be repeated. Requires the role "
            "DOMAIN_ADMIN or above. Default: no restriction."
        ),
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Scope; can be repeated. Default: all scopes.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="The key can't change anything.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option(help='Expiry: "30 days", or a date such as 2031-12-24.')
    ] = None,
) -> None:
    """Create an API key and print its secret. The secret is printed only once.

    Example: merganser api-key create --name backup --user ada --scope MAIL_READ --read-only

    Example: merganser api-key create --name root --role ROOT

    Example: merganser api-key create --name partner --role DOMAIN_ADMIN --domain example.org
    """


@declarations.command("list")
@implemented_in("merganser.commands.users.api_key_commands")
def list_api_keys(as_json: JsonOption = False) -> None:
    """List all API keys, without their secrets.

    Example: merganser api-key list
    """


@declarations.command("revoke")
@implemented_in("merganser.commands.users.api_key_commands")
def revoke_api_keys(
    ids: Annotated[list[str], typer.Argument(help="IDs, as `merganser api-key list` shows them.")],
) -> None:
    """Delete API keys, all or none. A running server refuses them within 1 second.

    Example: merganser api-key revoke key_AZpSKEwoAAE
    """
