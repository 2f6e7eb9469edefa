"""Declarations of the commands `merganser keys …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.admin.key_commands")
def print_encryption_keys(as_json: JsonOption = False) -> None:
    """List the names of the encryption keys, and the number of secrets encrypted with each.

    Example: merganser keys list
    """


@declarations.command("rotate")
@implemented_in("merganser.commands.admin.key_commands")
def rotate_encryption_keys(
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep the old keys in the key file.")
    ] = False,
) -> None:
    """Create a new key, encrypt all stored secrets with it, and remove the old keys.

    Stop all servers first. If the command is interrupted, run it again: nothing is lost. Older
    backups of the database need the old key file: keep it as long as the backups. Copy the new
    key file to all servers before you start them.

    Example: merganser keys rotate
    """
