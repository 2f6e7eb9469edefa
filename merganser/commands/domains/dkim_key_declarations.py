"""Declarations of the commands `merganser domain dkim-…`."""

from enum import StrEnum
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

DomainNames = Annotated[
    list[str], typer.Argument(help='Names of domains; "*" is all without a key.')
]

declarations = typer.Typer()


class DkimAlgorithmChoice(StrEnum):
    """The algorithm of a DKIM key, as an option value."""

    RSA = "rsa"
    ED25519 = "ed25519"


@declarations.command("dkim-list")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def list_dkim_keys(
    name: Annotated[str | None, typer.Argument(help="Only those of this domain.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look up what DNS says now.")
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
        DkimAlgorithmChoice, typer.Option(help="What it signs with.")
    ] = DkimAlgorithmChoice.RSA,
    bits: Annotated[int, typer.Option(help="Of RSA: 1024, 2048, 3072, 4096.")] = 2048,
) -> None:
    """Have domains sign what they send with a new key at once, and say what DNS should hold.

    A key with the same selector is replaced; `domain dkim-rotate` waits for DNS first.

    Example: merganser domain dkim-add example.org --selector s1
    """


@declarations.command("dkim-rotate")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def rotate_dkim_keys(names: DomainNames) -> None:
    """Make keys that follow those of domains, and say what DNS should hold.

    Each signs as soon as the server sees its record; the old one is kept for a while.

    Example: merganser domain dkim-rotate example.org
    """


@declarations.command("dkim-activate")
@implemented_in("merganser.commands.domains.dkim_key_commands")
def activate_dkim_key(
    name: Annotated[str, typer.Argument(help="Name of a domain.")],
    selector: Annotated[str, typer.Argument(help="That of the key.")],
) -> None:
    """Let a domain sign with a pending or retired key, without a check of DNS.

    Example: merganser domain dkim-activate example.org dkim-20300131
    """
