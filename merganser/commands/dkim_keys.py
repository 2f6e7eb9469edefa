"""The commands `merganser domain dkim-…`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.commands.domain_output import JsonOption, print_table_or_json

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment

DomainNames = Annotated[
    list[str], typer.Argument(help='Names of domains; "*" is all without a key.')
]


class DkimAlgorithmChoice(StrEnum):
    """The algorithm of a DKIM key, as an option value."""

    RSA = "rsa"
    ED25519 = "ed25519"


def list_dkim_keys(
    name: Annotated[str | None, typer.Argument(help="Only those of this domain.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look up what DNS says now.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """List the keys that domains sign with, where they stand, and whether DNS has them.

    Example: merganser domain dkim-list example.org
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await dkim_key_operations.list_keys(environment, name, queries_dns=check)

    columns = ("domain", "selector", "algorithm", "bits", "state", "dns")
    print_table_or_json(run_in_environment(run_operation), columns, as_json=as_json)


def add_dkim_key(
    names: DomainNames,
    selector: Annotated[str, typer.Option(help="Letters, digits, hyphens and dots.")] = "dkim",
    algorithm: Annotated[
        DkimAlgorithmChoice, typer.Option(help="What it signs with.")
    ] = DkimAlgorithmChoice.RSA,
    bits: Annotated[int, typer.Option(help="Of RSA: 1024, 2048, 3072, 4096.")] = 2048,
) -> None:
    """Have domains sign what they send with a new key at once, and say what DNS should hold.

    A key with the same selector is replaced; `domain dkim-rotate` waits for DNS first.

    Example: merganser domain dkim-add example.org --selector s1
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run_in_environment
    from models.domains.dkim_keys import DkimAlgorithm
    from resolvers.domains.dkim_key_mutations import NewDkimKey

    new_key = NewDkimKey(selector, algorithm=DkimAlgorithm[algorithm.name], key_size=bits)

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await dkim_key_operations.create_keys(environment, names, new_key)

    print_dns_records(run_in_environment(run_operation))


def rotate_dkim_keys(names: DomainNames) -> None:
    """Make keys that follow those of domains, and say what DNS should hold.

    Each signs as soon as the server sees its record; the old one is kept for a while.

    Example: merganser domain dkim-rotate example.org
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await dkim_key_operations.rotate_keys(environment, names)

    print_dns_records(run_in_environment(run_operation))


def activate_dkim_key(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[str, typer.Argument(help="That of the key.")],
) -> None:
    """Have a domain sign with a key that waits, or was retired, whatever DNS says.

    Example: merganser domain dkim-activate example.org dkim-20300131
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> None:
        await dkim_key_operations.activate_key(environment, name, selector)

    run_in_environment(run_operation)
    typer.echo(f"{name} signs with {selector}.")


def print_dns_records(keys: list[dict[str, Any]]) -> None:
    """Print the TXT records of DKIM keys."""
    typer.echo("DNS should hold:")
    for key in keys:
        typer.echo(f"{key['name']}. TXT {_zone_file_string(key['record'])}")


def _zone_file_string(text: str) -> str:
    """Quote a text for a zone file, in strings of at most 255 bytes (RFC 1035)."""
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    return " ".join(f'"{part}"' for part in parts)


def add_dkim_commands(domains: typer.Typer) -> None:
    """Add the commands about DKIM keys to the command group `domain`."""
    domains.command("dkim-list")(list_dkim_keys)
    domains.command("dkim-add")(add_dkim_key)
    domains.command("dkim-rotate")(rotate_dkim_keys)
    domains.command("dkim-activate")(activate_dkim_key)
