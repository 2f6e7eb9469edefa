"""Declarations of the commands `merganser domain …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import Annotated

import typer

from merganser.commands.domains import dkim_key_declarations
from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

SizeOption = Annotated[str | None, typer.Option(help="Such as 5 GiB; 0 is unlimited.")]

declarations = typer.Typer()


@declarations.command("add")
@implemented_in("merganser.commands.domains.domain_commands")
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


@declarations.command("list")
@implemented_in("merganser.commands.domains.domain_commands")
def list_domains(as_json: JsonOption = False) -> None:
    """List all domains, with what they have and may have.

    Example: merganser domain list
    """


@declarations.command("rename")
@implemented_in("merganser.commands.domains.domain_commands")
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


@declarations.command("delete")
@implemented_in("merganser.commands.domains.domain_commands")
def delete_domains(
    names: Annotated[list[str], typer.Argument(help="Names of domains.")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Also their users, addresses and aliases.")
    ] = False,
) -> None:
    """Delete domains, all or none. Without --cascade, each domain must be empty.

    Example: merganser domain delete old.example --cascade
    """


@declarations.command("dns")
@implemented_in("merganser.commands.domains.domain_commands")
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


@declarations.command("arc-key")
@implemented_in("merganser.commands.domains.arc_key_command")
def create_arc_key(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[
        str, typer.Option(help="Name of the key: letters, digits, dots and hyphens.")
    ] = "arc",
) -> None:
    """Make the key that seals what the domain forwards (ARC), and say what DNS should hold.

    The key goes into the folder MERGANSER_ARC_KEYS_FOLDER. A key that is there is kept, and its
    record is said again.

    Example: merganser domain arc-key example.org --selector arc1
    """


declarations.add_typer(dkim_key_declarations.declarations)
