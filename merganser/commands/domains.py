"""The commands `merganser domain …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.commands import dkim_keys
from merganser.commands.domain_output import JsonOption, print_table_or_json
from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from resolvers.domains.rename import DomainRenameResult

SizeOption = Annotated[str | None, typer.Option(help="Such as 5 GiB; 0 is unlimited.")]


def add_domain(
    name: Annotated[str, typer.Argument(help="Name of the domain.")],
    description: Annotated[str | None, typer.Option(help="Text for people.")] = None,
    max_users: Annotated[int | None, typer.Option(help="Accounts; 0 is any number.")] = None,
    max_addresses: Annotated[int | None, typer.Option(help="Addresses; 0 is any number.")] = None,
    default_user_quota: SizeOption = None,
    max_user_quota: SizeOption = None,
    quota: SizeOption = None,
    backup_mx: Annotated[
        bool, typer.Option("--backup-mx", help="Only relay to the primary server.")
    ] = False,
    dkim: Annotated[
        bool, typer.Option("--dkim/--no-dkim", help="With a key that signs once DNS has it.")
    ] = True,
) -> None:
    """Make a domain, with limits for its accounts, and say what DNS should hold of its key.

    Quotas are what a user has who is given none, what one user may have, and what all may have
    together. Limits that are not given are those of the settings MERGANSER_DOMAIN_…: none.

    Example: merganser domain add example.org --max-users 50 --quota "100 GiB"
    """
    from merganser.commands import domain_operations as domains
    from merganser.commands.environment_run import run_in_environment

    values = {
        "description": description,
        "max_users": max_users,
        "max_addresses": max_addresses,
        "default_user_quota": _bytes_from_option("--default-user-quota", default_user_quota),
        "max_user_quota": _bytes_from_option("--max-user-quota", max_user_quota),
        "quota": _bytes_from_option("--quota", quota),
        "backup_mx": backup_mx,
    }
    columns = {name: value for name, value in values.items() if value is not None}

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> tuple[str, list[dict[str, Any]]]:
        return await domains.create_domain(environment, name, columns, creates_dkim_key=dkim)

    key, keys = run_in_environment(run_operation)
    typer.echo(f"{name} is made: {key}")
    if keys:
        dkim_keys.print_dns_records(keys)


def list_domains(as_json: JsonOption = False) -> None:
    """List all domains, with what they have and may have.

    Example: merganser domain list
    """
    from merganser.commands import domain_operations as domains
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await domains.list_domains(environment)

    columns = ("name", "active", "users", "max_users", "addresses", "allocated", "quota", "used")
    print_table_or_json(run_in_environment(run_operation), columns, as_json=as_json)


def rename_domain(
    old: Annotated[str, typer.Argument(help="Its name.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed, or is in the way.")
    ] = False,
) -> None:
    """Give a domain another name, with its addresses, and the user names that are addresses in it.

    All of it at once, or none where something is in the way. Mail for the old name is refused
    from then on.

    Example: merganser domain rename old.example new.example --dry-run
    """
    from merganser.commands import domain_operations as domains
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "DomainRenameResult":
        return await domains.rename_domain(environment, old, new, dry_run=dry_run)

    result = run_in_environment(run_operation)
    typer.echo(f"{old} {'would be' if dry_run else 'is'} {result.domain.name}.")
    typer.echo(
        f"Addresses: {result.address_count}, users: {result.user_count}, "
        f"aliases: {result.alias_count}."
    )


def delete_domains(
    names: Annotated[list[str], typer.Argument(help="Names of domains.")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Also their users, addresses and aliases.")
    ] = False,
) -> None:
    """Delete domains, all or none; without --cascade only where nothing is left in them.

    Example: merganser domain delete old.example --cascade
    """
    from merganser.commands import domain_operations as domains
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> int:
        return await domains.delete_domains(environment, names, deletes_content=cascade)

    typer.echo(f"{run_in_environment(run_operation)} deleted.")


def print_dns_records(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look up what DNS says now.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Say what DNS should hold for a domain, and what it does.

    Ends with 1 where a record is missing or different.

    Example: merganser domain dns example.org
    """
    from merganser.commands import domain_operations as domains
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await domains.load_dns_records(environment, name, queries_dns=check)

    found = run_in_environment(run_operation)
    columns = ("state", "type", "name", "value", "found", "problem")
    print_table_or_json(found, columns, as_json=as_json)
    if any(each["state"] in ("MISSING", "DIFFERENT") for each in found):
        raise typer.Exit(EXIT_FAILURE)


def create_arc_key(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[
        str, typer.Option(help="Name of the key: letters, digits, dots and hyphens.")
    ] = "arc",
) -> None:
    """Make the key that seals what the domain forwards (ARC), and say what DNS should hold.

    The key goes into the folder MERGANSER_ARC_KEYS. A key that is there is kept, and its record
    is said again.

    Example: merganser domain arc-key example.org --selector arc1
    """
    from merganser.server import arc_keys
    from merganser.settings import settings as settings_settings

    folder = settings_settings.read_settings().arc_keys
    if folder is None:
        raise CommandError(
            "set MERGANSER_ARC_KEYS to the folder where keys shall lie", exit_code=EXIT_USAGE
        )
    arc_key = arc_keys.create_arc_key(folder, name, selector)
    typer.echo(f"{arc_key.path} is {'made' if arc_key.is_new else 'there'}. DNS should hold:")
    typer.echo(f'{arc_key.dns_name}. TXT "{arc_key.dns_record}"')


def _bytes_from_option(option: str, text: str | None) -> int | None:
    from merganser.settings.units import parse_size

    try:
        count = parse_size(text)
    except ValueError as problem:
        raise CommandError(f"{option}: {problem}", exit_code=EXIT_USAGE) from problem
    return count if isinstance(count, int) else None


def domain_commands() -> typer.Typer:
    """Create the command group `domain`."""
    app = typer.Typer(help="Make, list, rename and delete domains.", no_args_is_help=True)
    app.command("add")(add_domain)
    app.command("list")(list_domains)
    app.command("rename")(rename_domain)
    app.command("delete")(delete_domains)
    app.command("dns")(print_dns_records)
    app.command("arc-key")(create_arc_key)
    dkim_keys.add_dkim_commands(app)
    return app
