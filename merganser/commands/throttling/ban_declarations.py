"""Declarations of the commands `merganser ban …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in

NetworksArgument = Annotated[
    list[str], typer.Argument(help="IP addresses or networks, such as 192.0.2.0/24.")
]
ReasonOption = Annotated[str | None, typer.Option(help="Reason, for the audit log.")]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.throttling.ban_commands")
def list_bans(
    output_format: Annotated[
        str, typer.Option("--format", help="table, json, or nft: a set for the nftables firewall.")
    ] = "table",
) -> None:
    """List the refused networks: bans in force, and the networks of the deny list.

    Example: merganser ban list

    Example: merganser ban list --format nft | nft -f -
    """


@declarations.command("add")
@implemented_in("merganser.commands.throttling.ban_commands")
def add_bans(
    networks: NetworksArgument,
    duration: Annotated[
        str | None,
        typer.Option(
            "--for", help='Such as "2 hours" or P1D, 1 minute to 30 days. Default: by the policy.'
        ),
    ] = None,
    reason: ReasonOption = None,
) -> None:
    """Ban networks. Running servers refuse their connections within a second.

    Example: merganser ban add 203.0.113.7 --for "1 day" --reason "password guessing"
    """


@declarations.command("lift")
@implemented_in("merganser.commands.throttling.ban_commands")
def lift_bans_and_delete_failure_counts(
    networks: NetworksArgument, reason: ReasonOption = None
) -> None:
    """Lift the bans of networks and their delays after failures.

    Bans and delays of all networks that overlap these networks end. The deny list stays.

    Example: merganser ban lift 203.0.113.7 --reason "misconfigured client"
    """
