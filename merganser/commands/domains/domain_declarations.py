"""Declarations of the commands `merganser domain …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import Annotated

import typer

from merganser.commands.domains import dkim_key_declarations
from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

SizeOption = Annotated[str | None, typer.Option(help="Size, such as 5 GiB. 0: unlimited.")]

declarations = typer.Typer()


@declarations.command("add")
@implemented_in("merganser.commands.domains.domain_commands")
def add_domain(
    name: Annotated[str, typer.Argument(help="Name of the domain.")],
    description: Annotated[str | None, typer.Option(help="Description for people.")] = None,
    max_users: Annotated[
        int | None, typer.Option(help="Largest number of accounts. 0: unlimited.")
    ] = None,
    max_addresses: Annotated[
        int | None, typer.Option(help="Largest number of addresses. 0: unlimited.")
    ] = None,
    default_user_quota: SizeOption = None,
    max_user_quota: SizeOption = None,
    quota: SizeOption = None,
    backup_mx: Annotated[
        bool, typer.Option("--backup-mx", help="Relay mail to the primary server.")
    ] = False,
    dkim: Annotated[
        bool,
        typer.Option(
            "--dkim/--no-dkim", help="Create a DKIM key, which signs after DNS has its record."
        ),
    ] = True,
) -> None:
    """Create a domain with limits for its accounts, and print the DNS record of its DKIM key.

    --default-user-quota is the quota of a user without an own one, --max-user-quota the largest
    quota of a user, and --quota the quota of the domain. The settings of new domains are the
    defaults.

    Example: merganser domain add example.org --max-users 50 --quota "100 GiB"
    """


@declarations.command("list")
@implemented_in("merganser.commands.domains.domain_commands")
def list_domains(as_json: JsonOption = False) -> None:
    """List all domains with their usage and limits.

    Example: merganser domain list
    """


@declarations.command("rename")
@implemented_in("merganser.commands.domains.domain_commands")
def rename_domain(
    old: Annotated[str, typer.Argument(help="Name of the domain.")],
    new: Annotated[str, typer.Argument(help="New name.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the changes and obstacles.")
    ] = False,
) -> None:
    """Rename a domain, with its addresses and the usernames that are addresses in it.

    If there is an obstacle, nothing is changed. Mail for the old name is refused afterwards.

    Example: merganser domain rename old.example new.example --dry-run
    """


@declarations.command("delete")
@implemented_in("merganser.commands.domains.domain_commands")
def delete_domains(
    names: Annotated[list[str], typer.Argument(help="Names of domains.")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Delete their users, addresses and aliases too.")
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
        bool, typer.Option("--check/--no-check", help="Query DNS for the records.")
    ] = True,
    wait: Annotated[
        bool, typer.Option("--wait", help="Query DNS until it has all required records.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="Longest time to wait, such as 10 min.")] = "1 h",
    as_json: JsonOption = False,
) -> None:
    """Print the DNS records that a domain needs, and compare them with DNS.

    The exit code is 1 if a required record is missing or different. With --wait, it is 1 if DNS
    still lacks one after the timeout. Until then, stderr shows the missing records.

    Example: merganser domain dns example.org --wait
    """


@declarations.command("arc-key")
@implemented_in("merganser.commands.domains.arc_key_command")
def create_arc_key_if_missing(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[
        str, typer.Option(help="Name of the key: letters, digits, dots and hyphens.")
    ] = "arc",
) -> None:
    """Create the ARC key that seals mail forwarded by a domain, and print its DNS record.

    The key is stored in the folder MERGANSER_ARC_KEYS_FOLDER. An existing key is kept, and its
    record is printed again.

    Example: merganser domain arc-key example.org --selector arc1
    """


declarations.add_typer(dkim_key_declarations.declarations)
