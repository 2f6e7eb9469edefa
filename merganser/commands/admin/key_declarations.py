"""Declarations of the commands `merganser keys …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.admin.key_commands")
def list_keys(as_json: JsonOption = False) -> None:
    """List the keys by name, and how many secrets are sealed with each. Never the keys.

    Example: merganser keys list
    """


@declarations.command("rotate")
@implemented_in("merganser.commands.admin.key_commands")
def rotate_keys(
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Leave the old keys in the file.")
    ] = False,
) -> None:
    """Make a new key, seal all secrets in the store with it, and remove the old keys.

    Needs the servers stopped. Killed at any point it loses nothing: run it again. Backups of the
    store that were made before need the old file of keys: keep it as long as them. Where several
    machines serve the store, give all of them the new file before they start.

    Example: merganser keys rotate
    """
