"""Declarations of the commands `merganser cluster …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in

declarations = typer.Typer()


@declarations.callback()
def cluster() -> None:
    """Print which node serves which user."""


@declarations.command("map")
@implemented_in("merganser.commands.cluster.cluster_commands")
def print_or_write_user_node_map(
    path: Annotated[
        str | None,
        typer.Option("--output", help="File to replace with the map. Default: the map is printed."),
    ] = None,
) -> None:
    """Print the nodes of users as a map file of HAProxy: one line "username host:port" each.

    Users without a node are left out.

    Example: merganser cluster map --output /etc/haproxy/users.map
    """
