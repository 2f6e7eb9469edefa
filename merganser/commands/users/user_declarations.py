"""Declarations of the commands `merganser user …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from pathlib import Path
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption
from models.users.list_formats import UserFileFormat
from models.users.roles import Role

PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from stdin.")
]

declarations = typer.Typer()


@declarations.command("add")
@implemented_in("merganser.commands.users.user_commands")
def add_user(
    name: Annotated[str, typer.Argument(help="User name, or an address to be both.")],
    address: Annotated[
        str | None, typer.Option(help="Main address, where the name is not one.")
    ] = None,
    no_address: Annotated[bool, typer.Option("--no-address", help="No address at all.")] = False,
    password_stdin: PasswordStdin = False,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="No password: API keys only.")
    ] = False,
    role: Annotated[Role, typer.Option(help="What they may do.")] = Role.USER,
    quota: Annotated[
        str | None, typer.Option(help="Storage, such as 5 GiB; 0 is unlimited.")
    ] = None,
    full_name: Annotated[str | None, typer.Option("--name", help="Name for people.")] = None,
) -> None:
    """Make an account. Its domain must exist: `merganser domain add` creates it.

    Example: merganser user add ada@example.org --quota "5 GiB"

    Example: echo secret | merganser user add ada --address ada@example.org --password-stdin
    """


@declarations.command("import")
@implemented_in("merganser.commands.users.user_import_command")
def import_users(
    file: Annotated[Path, typer.Argument(help="A CSV or JSON Lines file, UTF-8.")],
    form: Annotated[
        UserFileFormat | None,
        typer.Option("--format", help="Default: JSON_LINES if it begins with a brace, else CSV."),
    ] = None,
) -> None:
    """Create the accounts of a file; each that is refused is reported with its line.

    Fields have the names of NewUserInput in the API. Run the command again after a crash:
    accounts that exist are refused. The exit code is 1 if an account is refused.

    Example: merganser user import users.csv
    """


@declarations.command("list")
@implemented_in("merganser.commands.users.user_commands")
def list_users(
    query: Annotated[
        str | None, typer.Option(help="Only who has this in user name, name or main address.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only of this domain.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with this label; again: or that.")
    ] = None,
    active: Annotated[
        bool | None,
        typer.Option(
            "--active/--inactive", help="Only active users, or only users that are not active."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List accounts.

    Example: merganser user list --json

    Example: merganser user list --query lovelace --domain example.org
    """


@declarations.command("passwd")
@implemented_in("merganser.commands.users.user_commands")
def change_password(
    name: Annotated[str, typer.Argument(help="User name or address.")],
    password_stdin: PasswordStdin = False,
) -> None:
    """Give a user another password. Who is signed in with the old one is signed out.

    Example: merganser user passwd ada
    """


@declarations.command("delete")
@implemented_in("merganser.commands.users.user_commands")
def delete_user(
    name: Annotated[str, typer.Argument(help="User name or address.")],
    after: Annotated[
        str | None,
        typer.Option(help='Keep what is stored until then: "30 days", or a date as 2031-12-24.'),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """End an account. Its name and addresses are free at once; its data goes by a task.

    With --after it can be brought back until then. Once more for the same name puts it off.

    Example: merganser user delete ada --after "30 days"
    """


@declarations.command("restore")
@implemented_in("merganser.commands.users.user_commands")
def restore_user(
    name: Annotated[str, typer.Argument(help="User name or address that it had.")],
) -> None:
    """Bring a deleted account back, while what it has stored waits.

    Example: merganser user restore ada
    """
