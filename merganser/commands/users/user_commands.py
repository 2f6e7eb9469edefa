"""Implementations of the commands `merganser user …`, except `import`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import sys

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_bytes, parse_date_or_duration_from_now
from merganser.commands.terminal_output import print_table_or_json
from merganser.commands.users import user_operations
from merganser.commands.users.user_output import user_cell_text
from merganser.errors import EXIT_USAGE, CommandError
from models.users.roles import Role
from resolvers.domains.loaders import DomainIdOrName
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import Unlimited
from resolvers.users.listing import UserConditions


def add_user(
    name: str,
    address: str | None,
    no_address: bool,
    password_stdin: bool,
    no_password: bool,
    role: Role,
    quota: str | None,
    full_name: str | None,
) -> None:
    """Create a user, and print the global ID and warnings."""
    if no_password and password_stdin:
        raise CommandError(
            "--no-password and --password-stdin can't be combined.", exit_code=EXIT_USAGE
        )
    quota_bytes = parse_bytes("--quota", quota)
    new = NewUser(
        username=name,
        name=full_name,
        role=role,
        password=None if no_password else _read_or_prompt_password(stdin=password_stdin),
        password_disabled=no_password,
        address=address,
        empty_address=no_address,
        quota=Unlimited.UNLIMITED if quota_bytes == 0 else quota_bytes,
    )
    key, warnings = run_in_environment(
        lambda environment, _settings: user_operations.create_user(environment, new)
    )
    typer.echo(f"{name} created: {key}")
    for text in warnings:
        typer.echo(f"warning: {text}", err=True)


def change_password(name: str, password_stdin: bool) -> None:
    """Change the password of a user."""
    password = _read_or_prompt_password(stdin=password_stdin)
    run_in_environment(
        lambda environment, _settings: user_operations.change_password(environment, name, password)
    )
    typer.echo(f"{name} has another password.")


def list_users(
    query: str | None,
    domain: str | None,
    tag: list[str] | None,
    active: bool | None,
    as_json: bool,
) -> None:
    """Print the users that match these conditions."""
    conditions = UserConditions(
        query,
        tuple(tag) if tag else None,
        domain=None if domain is None else DomainIdOrName(name=domain),
        active=active,
    )
    users = run_in_environment(
        lambda environment, _settings: user_operations.load_users_as_json(environment, conditions)
    )
    columns = ("username", "address", "role", "messages", "used")
    print_table_or_json(users, columns, user_cell_text, as_json=as_json)


def delete_user(name: str, after: str | None, yes: bool) -> None:
    """Delete a user, after a question if the data is deleted at once."""
    delete_at = parse_date_or_duration_from_now("--after", after)
    if not yes and delete_at is None:
        if not sys.stdin.isatty():
            raise CommandError(
                "All mail of the user will be deleted: confirm with --yes, or delay with --after.",
                exit_code=EXIT_USAGE,
            )
        typer.confirm(f"Delete {name}, and all that is stored?", abort=True)
    kept_until = run_in_environment(
        lambda environment, _settings: user_operations.delete_user_or_reschedule_purge(
            environment, name, delete_at
        )
    )
    removal_text = (
        f"kept until {kept_until:%Y-%m-%d %H:%M} UTC"
        if kept_until
        else "removed by a running server"
    )
    typer.echo(f"{name} is deleted; what it has stored is {removal_text}.")


def restore_user(name: str) -> None:
    """Restore a deleted user, and print the recovered addresses."""
    recovered, missing = run_in_environment(
        lambda environment, _settings: user_operations.restore_user(environment, name)
    )
    typer.echo(f"{name} is back, with {' '.join(recovered) or 'no address'}.")
    if missing:
        typer.echo(f"used by others, or of a deleted domain: {' '.join(missing)}", err=True)


def _read_or_prompt_password(*, stdin: bool) -> str:
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise CommandError("Standard input has no password.", exit_code=EXIT_USAGE)
        return password
    if not sys.stdin.isatty():
        raise CommandError(
            "--password-stdin is required: the password is read from standard input.",
            exit_code=EXIT_USAGE,
        )
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
