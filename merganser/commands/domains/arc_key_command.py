"""Implementation of `merganser domain arc-key`."""

import typer

from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import arc_keys
from merganser.settings.settings import read_settings


def create_arc_key(name: str, selector: str) -> None:
    """Create the ARC key of a domain if it is missing, and print its DNS record."""
    folder = read_settings().arc_keys_folder
    if folder is None:
        raise CommandError(
            "set MERGANSER_ARC_KEYS_FOLDER to the folder where keys shall lie", exit_code=EXIT_USAGE
        )
    arc_key = arc_keys.create_arc_key(folder, name, selector)
    typer.echo(f"{arc_key.path} is {'made' if arc_key.is_new else 'there'}. DNS should hold:")
    typer.echo(f'{arc_key.dns_name}. TXT "{arc_key.dns_record}"')
