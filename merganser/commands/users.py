"""The commands `merganser user …` and `merganser token …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

import sys
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import MISUSED, WRONG, Trouble
from models.users.list_formats import UserFileFormat
from models.users.roles import Role, Scope

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import World

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Stdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]


def add(
    name: Annotated[str, typer.Argument(help="User name, or an address to be both.")],
    address: Annotated[
        str | None, typer.Option(help="Main address, where the name is not one.")
    ] = None,
    no_address: Annotated[bool, typer.Option("--no-address", help="No address at all.")] = False,
    password_stdin: Stdin = False,
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
    from merganser.commands.environment_run import run
    from resolvers.users.creation.create import NewUser

    if no_password and password_stdin:
        raise Trouble("--no-password and --password-stdin exclude each other", code=MISUSED)
    new = NewUser(
        username=name,
        name=full_name,
        role=role,
        password=None if no_password else _password(stdin=password_stdin),
        password_disabled=no_password,
        address=address,
        empty_address=no_address,
        quota=_bytes(quota),
    )

    async def run_operation(environment: "World", _settings: "Settings") -> tuple[str, list[str]]:
        return await user_operations.add(environment, new)

    key, warnings = run(run_operation)
    typer.echo(f"{name} is made: {key}")
    for text in warnings:
        typer.echo(f"warning: {text}", err=True)


def passwd(
    name: Annotated[str, typer.Argument(help="User name or address.")],
    password_stdin: Stdin = False,
) -> None:
    """Give a user another password. Who is signed in with the old one is signed out.

    Example: merganser user passwd ada
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run

    password = _password(stdin=password_stdin)

    async def run_operation(environment: "World", _settings: "Settings") -> None:
        await user_operations.change_password(environment, name, password)

    run(run_operation)
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
    as_json: Json = False,
) -> None:
    """List accounts.

    Example: merganser user list --json

    Example: merganser user list --query lovelace --domain example.org
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run
    from resolvers.users.listing import UserWhere

    where = UserWhere(query, tuple(tag) if tag else None, domain=domain, disabled=disabled)

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await user_operations.listed(environment, where)

    found = run(run_operation)
    columns = ("username", "address", "role", "messages", "used")
    _print(found, columns, as_json=as_json)


def delete(
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
    from merganser.commands.environment_run import run

    until = _end(after, option="--after")
    if not yes and until is None:
        if not sys.stdin.isatty():
            raise Trouble("all mail will be gone: say --yes, or --after", code=MISUSED)
        typer.confirm(f"Delete {name}, and all that is stored?", abort=True)

    async def run_operation(environment: "World", _settings: "Settings") -> datetime | None:
        return await user_operations.delete(environment, name, until)

    waits = run(run_operation)
    when = f"kept until {waits:%Y-%m-%d %H:%M} UTC" if waits else "removed by a running server"
    typer.echo(f"{name} is deleted; what it has stored is {when}.")


def restore(
    name: Annotated[str, typer.Argument(help="User name or address that it had.")],
) -> None:
    """Bring a deleted account back, while what it has stored waits.

    Example: merganser user restore ada
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run

    async def run_operation(
        environment: "World", _settings: "Settings"
    ) -> tuple[list[str], list[str]]:
        return await user_operations.restore(environment, name)

    recovered, lost = run(run_operation)
    typer.echo(f"{name} is back, with {' '.join(recovered) or 'no address'}.")
    if lost:
        typer.echo(f"taken by others, or of a domain that is gone: {' '.join(lost)}", err=True)


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
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> tuple[int, int]:
        created = refused = 0
        async with aclosing(user_operations.create_from_file(environment, file, form)) as outcomes:
            async for outcome in outcomes:
                created += outcome.created
                refused += len({one["line"] for one in outcome.refused})
                for one in outcome.refused:
                    where = ".".join(one["path"]) or "record"
                    text = f"line {one['line']}: {where}: {one['message']} ({one['code']})"
                    typer.echo(text, err=True)
        return created, refused

    created, refused = run(run_operation)
    typer.echo(f"{created} accounts created, {refused} refused.")
    if refused:
        raise typer.Exit(WRONG)


def create(
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
    from merganser.commands.environment_run import run

    key = user_operations.Key(
        name, user, role, tuple(scope or ()), read_only=read_only, expires=_end(expires)
    )

    async def run_operation(environment: "World", _settings: "Settings") -> tuple[str, str]:
        return await user_operations.make_key(environment, key)

    made, secret = run(run_operation)
    typer.echo(f"{made} is made; keep its secret, it is not shown again:", err=True)
    typer.echo(secret)


def list_tokens(as_json: Json = False) -> None:
    """List all API keys, without their secrets.

    Example: merganser token list
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await user_operations.keys(environment)

    found = run(run_operation)
    columns = ("id", "name", "user", "role", "scopes", "read_only", "expires_at")
    _print(found, columns, as_json=as_json)


def revoke(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `merganser token list` shows them.")],
) -> None:
    """Delete API keys, all or none. A running server forgets them within 5 seconds.

    Example: merganser token revoke key_AZpSKEwoAAE
    """
    from merganser.commands import user_operations
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> None:
        await user_operations.revoke(environment, ids)

    run(run_operation)
    typer.echo(f"{len(ids)} revoked.")


def _password(*, stdin: bool) -> str:
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise Trouble("there is no password on stdin", code=MISUSED)
        return password
    if not sys.stdin.isatty():
        raise Trouble("give the password with --password-stdin", code=MISUSED)
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _bytes(text: str | None) -> int | None:
    from merganser.settings.units import size

    try:
        count = size(text)
    except ValueError as problem:
        raise Trouble(f"--quota: {problem}", code=MISUSED) from problem
    return count if isinstance(count, int) else None


def _end(text: str | None, *, option: str = "--expires") -> datetime | None:
    from merganser.settings.units import span

    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
        return given if given.tzinfo else given.astimezone()
    except ValueError:
        pass
    try:
        time = span(text)
    except ValueError as problem:
        raise Trouble(f'{option}: write "30 days" or 2031-12-24', code=MISUSED) from problem
    return datetime.now(UTC) + time if isinstance(time, timedelta) else None


def _print(found: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from merganser.commands.terminal_tables import shown

    titles = [name.replace("_", " ") for name in columns]
    shown(titles, [[_cell(each[name]) for name in columns] for each in found])


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def users() -> typer.Typer:
    """Create the command group `user`."""
    made = typer.Typer(help="Make, list and change accounts.", no_args_is_help=True)
    made.command("add")(add)
    made.command("import")(import_users)
    made.command("list")(list_users)
    made.command("passwd")(passwd)
    made.command("delete")(delete)
    made.command("restore")(restore)
    return made


def tokens() -> typer.Typer:
    """Create the command group `token`."""
    made = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
    made.command("create")(create)
    made.command("list")(list_tokens)
    made.command("revoke")(revoke)
    return made
