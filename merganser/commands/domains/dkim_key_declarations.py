"""Declarations of the commands `merganser domain dkim-…`."""

from enum import StrEnum
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

DomainNames = Annotated[
    list[str], typer.Argument(help='Names of domains. "*": all domains without own keys.')
]

declarations = typer.Typer()


class DkimAlgorithmChoice(StrEnum):
    """The algorithm of a DKIM key, as an option value."""

    RSA = "rsa"
    ED25519 = "ed25519"


@declarations.command("dkim-list")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def list_dkim_keys(
    name: Annotated[str | None, typer.Argument(help="List only keys of this domain.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Query DNS for the records.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """List DKIM keys with their state, and whether DNS has their records.

    Example: merganser domain dkim-list example.org
    """


@declarations.command("dkim-add")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def add_dkim_key(
    names: DomainNames,
    selector: Annotated[str, typer.Option(help="Letters, digits, hyphens and dots.")] = "dkim",
    algorithm: Annotated[
        DkimAlgorithmChoice, typer.Option(help="Signature algorithm.")
    ] = DkimAlgorithmChoice.RSA,
    bits: Annotated[int, typer.Option(help="Size of an RSA key: 1024, 2048, 3072 or 4096.")] = 2048,
) -> None:
    """Create DKIM keys that sign at once, and print their DNS records.

    A key with the same selector is replaced. Other keys of the same algorithm are retired.
    `domain dkim-rotate` waits for DNS first.

    Example: merganser domain dkim-add example.org --selector s1
    """


@declarations.command("dkim-rotate")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def rotate_dkim_keys(names: DomainNames) -> None:
    """Create the next DKIM keys of domains, and print their DNS records.

    A new key signs as soon as DNS has its record. The old key is retired.

    Example: merganser domain dkim-rotate example.org
    """


@declarations.command("dkim-activate")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def activate_dkim_key(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[str, typer.Argument(help="Selector of the key.")],
) -> None:
    """Activate a pending or retired DKIM key without a check of DNS.

    Other keys of the same domain and algorithm are retired.

    Example: merganser domain dkim-activate example.org dkim-20300131
    """
