"""The commands `merganser domain dkim-…`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.commands.domain_output import Json, shown

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import World

Names = Annotated[list[str], typer.Argument(help='Names of domains; "*" is all without a key.')]


class Kind(StrEnum):
    """The algorithm of a DKIM key, as an option value."""

    RSA = "rsa"
    ED25519 = "ed25519"


def dkim_list(
    name: Annotated[str | None, typer.Argument(help="Only those of this domain.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look up what DNS says now.")
    ] = True,
    as_json: Json = False,
) -> None:
    """List the keys that domains sign with, where they stand, and whether DNS has them.

    Example: merganser domain dkim-list example.org
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await dkim_key_operations.listed(environment, name, check=check)

    columns = ("domain", "selector", "algorithm", "bits", "state", "dns")
    shown(run(run_operation), columns, as_json=as_json)


def dkim_add(
    names: Names,
    selector: Annotated[str, typer.Option(help="Letters, digits, hyphens and dots.")] = "dkim",
    algorithm: Annotated[Kind, typer.Option(help="What it signs with.")] = Kind.RSA,
    bits: Annotated[int, typer.Option(help="Of RSA: 1024, 2048, 3072, 4096.")] = 2048,
) -> None:
    """Have domains sign what they send with a new key at once, and say what DNS should hold.

    A key with the same selector is replaced; `domain dkim-rotate` waits for DNS first.

    Example: merganser domain dkim-add example.org --selector s1
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run
    from models.domains.dkim_keys import DkimAlgorithm
    from resolvers.domains.dkim_key_mutations import NewKey

    new_key = NewKey(selector, algorithm=DkimAlgorithm[algorithm.name], key_size=bits)

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await dkim_key_operations.make(environment, names, new_key)

    tell(run(run_operation))


def dkim_rotate(names: Names) -> None:
    """Make keys that follow those of domains, and say what DNS should hold.

    Each signs as soon as the server sees its record; the old one is kept for a while.

    Example: merganser domain dkim-rotate example.org
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await dkim_key_operations.rotate(environment, names)

    tell(run(run_operation))


def dkim_activate(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[str, typer.Argument(help="That of the key.")],
) -> None:
    """Have a domain sign with a key that waits, or was retired, whatever DNS says.

    Example: merganser domain dkim-activate example.org dkim-20300131
    """
    from merganser.commands import dkim_key_operations
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> None:
        await dkim_key_operations.activate(environment, name, selector)

    run(run_operation)
    typer.echo(f"{name} signs with {selector}.")


def tell(keys: list[dict[str, Any]]) -> None:
    """Print the TXT records of DKIM keys."""
    typer.echo("DNS should hold:")
    for key in keys:
        typer.echo(f"{key['name']}. TXT {_quoted(key['record'])}")


def _quoted(text: str) -> str:
    """Quote a text for a zone file, in strings of at most 255 bytes (RFC 1035)."""
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    return " ".join(f'"{part}"' for part in parts)


def add(domains: typer.Typer) -> None:
    """Add the commands about DKIM keys to the command group `domain`."""
    domains.command("dkim-list")(dkim_list)
    domains.command("dkim-add")(dkim_add)
    domains.command("dkim-rotate")(dkim_rotate)
    domains.command("dkim-activate")(dkim_activate)
