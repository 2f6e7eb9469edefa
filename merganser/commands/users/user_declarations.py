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
    name: Annotated[str, typer.Argument(help="Username, or an address that is also the username.")],
    address: Annotated[
        str | None, typer.Option(help="Main address, if the username is not one.")
    ] = None,
    no_address: Annotated[bool, typer.Option("--no-address", help="Create no address.")] = False,
    password_stdin: PasswordStdin = False,
    no_password: Annotated[
        bool,
        typer.Option(
            "--no-password",
            help="No password: API keys, application passwords and identity providers sign in.",
        ),
    ] = False,
    role: Annotated[Role, typer.Option(help="Role of the user.")] = Role.USER,
    quota: Annotated[str | None, typer.Option(help="Storage, such as 5 GiB. 0: unlimited.")] = None,
    full_name: Annotated[str | None, typer.Option("--name", help="Display name.")] = None,
) -> None:
    """Create an account. Its domain must exist: `merganser domain add` creates it.

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
    """Create the accounts of a file. Refused accounts are reported with their line.

    Fields have the names of NewUserInput in the API. Run the command again after a crash:
    accounts that exist are refused. The exit code is 1 if an account is refused.

    Example: merganser user import users.csv
    """


@declarations.command("list")
@implemented_in("merganser.commands.users.user_commands")
def list_users(
    query: Annotated[
        str | None,
        typer.Option(help="List only users with this text in username, name or main address."),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="List only users of this domain.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="List only users with this tag; can be repeated: one is enough."),
    ] = None,
    active: Annotated[
        bool | None,
        typer.Option("--active/--inactive", help="List only active users, or only inactive users."),
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
    name: Annotated[str, typer.Argument(help="Username or address.")],
    password_stdin: PasswordStdin = False,
) -> None:
    """Change the password of a user. Sign-ins with the old password end.

    Example: merganser user passwd ada
    """


@declarations.command("delete")
@implemented_in("merganser.commands.users.user_commands")
def delete_user(
    name: Annotated[str, typer.Argument(help="Username or address.")],
    after: Annotated[
        str | None,
        typer.Option(help='Keep the data until then: "30 days", or a date such as 2031-12-24.'),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
) -> None:
    """Delete an account. Its name and addresses are free at once. A task deletes its data.

    With --after the account can be restored until then. To change the time, run the command again
    with the username.

    Example: merganser user delete ada --after "30 days"
    """


@declarations.command("restore")
@implemented_in("merganser.commands.users.user_commands")
def restore_user(
    name: Annotated[str, typer.Argument(help="Former username or address.")],
) -> None:
    """Restore a deleted account whose data still exists.

    Example: merganser user restore ada
    """
