"""The commands `merganser user …` and `merganser token …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

import sys
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from models.users.list_formats import UserFileFormat
from models.users.roles import Role, Scope

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from stdin.")
]


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
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment
    from resolvers.users.creation.create import NewUser

    if no_password and password_stdin:
        raise CommandError(
            "--no-password and --password-stdin exclude each other", exit_code=EXIT_USAGE
        )
    new = NewUser(
        username=name,
        name=full_name,
        role=role,
        password=None if no_password else _read_password(stdin=password_stdin),
        password_disabled=no_password,
        address=address,
        empty_address=no_address,
        quota=_quota_bytes(quota),
    )

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> tuple[str, list[str]]:
        return await user_operations.create_user(environment, new)

    key, warnings = run_in_environment(run_operation)
    typer.echo(f"{name} is made: {key}")
    for text in warnings:
        typer.echo(f"warning: {text}", err=True)


def change_password(
    name: Annotated[str, typer.Argument(help="User name or address.")],
    password_stdin: PasswordStdin = False,
) -> None:
    """Give a user another password. Who is signed in with the old one is signed out.

    Example: merganser user passwd ada
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    password = _read_password(stdin=password_stdin)

    async def run_operation(environment: "Environment", _settings: "Settings") -> None:
        await user_operations.change_password(environment, name, password)

    run_in_environment(run_operation)
    typer.echo(f"{name} has another password.")


def list_users(
    query: Annotated[
        str | None, typer.Option(help="Only who has this in user name, name or main address.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only of this domain.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with this label; again: or that.")
    ] = None,
    disabled: Annotated[
        bool | None, typer.Option("--disabled/--enabled", help="Only who is off, or on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List accounts.

    Example: merganser user list --json

    Example: merganser user list --query lovelace --domain example.org
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment
    from resolvers.users.listing import UserConditions

    conditions = UserConditions(
        query, tuple(tag) if tag else None, domain=domain, disabled=disabled
    )

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await user_operations.list_users(environment, conditions)

    found = run_in_environment(run_operation)
    columns = ("username", "address", "role", "messages", "used")
    _print_table_or_json(found, columns, as_json=as_json)


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
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    until = _parse_end_time(after, option="--after")
    if not yes and until is None:
        if not sys.stdin.isatty():
            raise CommandError("all mail will be gone: say --yes, or --after", exit_code=EXIT_USAGE)
        typer.confirm(f"Delete {name}, and all that is stored?", abort=True)

    async def run_operation(environment: "Environment", _settings: "Settings") -> datetime | None:
        return await user_operations.delete_user(environment, name, until)

    waits = run_in_environment(run_operation)
    removal_text = (
        f"kept until {waits:%Y-%m-%d %H:%M} UTC" if waits else "removed by a running server"
    )
    typer.echo(f"{name} is deleted; what it has stored is {removal_text}.")


def restore_user(
    name: Annotated[str, typer.Argument(help="User name or address that it had.")],
) -> None:
    """Bring a deleted account back, while what it has stored waits.

    Example: merganser user restore ada
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> tuple[list[str], list[str]]:
        return await user_operations.restore_user(environment, name)

    recovered, missing = run_in_environment(run_operation)
    typer.echo(f"{name} is back, with {' '.join(recovered) or 'no address'}.")
    if missing:
        typer.echo(f"taken by others, or of a domain that is gone: {' '.join(missing)}", err=True)


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
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> tuple[int, int]:
        created = refused = 0
        async with aclosing(
            user_operations.create_users_from_file(environment, file, form)
        ) as outcomes:
            async for outcome in outcomes:
                created += outcome.created_count
                refused += len({one["line"] for one in outcome.errors})
                for one in outcome.errors:
                    location = ".".join(one["path"]) or "record"
                    text = f"line {one['line']}: {location}: {one['message']} ({one['code']})"
                    typer.echo(text, err=True)
        return created, refused

    created, refused = run_in_environment(run_operation)
    typer.echo(f"{created} accounts created, {refused} refused.")
    if refused:
        raise typer.Exit(EXIT_FAILURE)


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
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    key = user_operations.ApiKeyRequest(
        name,
        user,
        role,
        tuple(scope or ()),
        is_read_only=read_only,
        expires_at=_parse_end_time(expires),
    )

    async def run_operation(environment: "Environment", _settings: "Settings") -> tuple[str, str]:
        return await user_operations.create_api_key(environment, key)

    api_key, secret = run_in_environment(run_operation)
    typer.echo(f"{api_key} is made; keep its secret, it is not shown again:", err=True)
    typer.echo(secret)


def list_api_keys(as_json: JsonOption = False) -> None:
    """List all API keys, without their secrets.

    Example: merganser token list
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await user_operations.list_api_keys(environment)

    found = run_in_environment(run_operation)
    columns = ("id", "name", "user", "role", "scopes", "read_only", "expires_at")
    _print_table_or_json(found, columns, as_json=as_json)


def revoke_api_keys(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `merganser token list` shows them.")],
) -> None:
    """Delete API keys, all or none. A running server forgets them within 5 seconds.

    Example: merganser token revoke key_AZpSKEwoAAE
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> None:
        await user_operations.delete_api_keys(environment, ids)

    run_in_environment(run_operation)
    typer.echo(f"{len(ids)} revoked.")


def _read_password(*, stdin: bool) -> str:
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise CommandError("there is no password on stdin", exit_code=EXIT_USAGE)
        return password
    if not sys.stdin.isatty():
        raise CommandError("give the password with --password-stdin", exit_code=EXIT_USAGE)
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _quota_bytes(text: str | None) -> int | None:
    from merganser.settings.units import parse_size

    try:
        count = parse_size(text)
    except ValueError as problem:
        raise CommandError(f"--quota: {problem}", exit_code=EXIT_USAGE) from problem
    return count if isinstance(count, int) else None


def _parse_end_time(text: str | None, *, option: str = "--expires") -> datetime | None:
    from merganser.settings.units import parse_duration

    if text is None:
        return None
    try:
        end_time = datetime.fromisoformat(text)
        return end_time if end_time.tzinfo else end_time.astimezone()
    except ValueError:
        pass
    try:
        time = parse_duration(text)
    except ValueError as problem:
        raise CommandError(
            f'{option}: write "30 days" or 2031-12-24', exit_code=EXIT_USAGE
        ) from problem
    return datetime.now(UTC) + time if isinstance(time, timedelta) else None


def _print_table_or_json(
    found: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool
) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from merganser.commands.terminal_tables import print_table

    titles = [name.replace("_", " ") for name in columns]
    print_table(titles, [[_cell_text(each[name]) for name in columns] for each in found])


def _cell_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def user_commands() -> typer.Typer:
    """Create the command group `user`."""
    app = typer.Typer(help="Make, list and change accounts.", no_args_is_help=True)
    app.command("add")(add_user)
    app.command("import")(import_users)
    app.command("list")(list_users)
    app.command("passwd")(change_password)
    app.command("delete")(delete_user)
    app.command("restore")(restore_user)
    return app


def token_commands() -> typer.Typer:
    """Create the command group `token`."""
    app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
    app.command("create")(create_api_key)
    app.command("list")(list_api_keys)
    app.command("revoke")(revoke_api_keys)
    return app
