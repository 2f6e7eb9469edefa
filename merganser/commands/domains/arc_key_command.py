"""Implementation of `merganser domain arc-key`."""

import typer

from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import arc_keys
from merganser.settings.settings import read_settings


def create_arc_key_if_missing(name: str, selector: str) -> None:
    """Create the ARC key of a domain if it is missing, and print its DNS record."""
    folder = read_settings().arc_keys_folder
    if folder is None:
        raise CommandError(
            "Set MERGANSER_ARC_KEYS_FOLDER to the folder for the keys.", exit_code=EXIT_USAGE
        )
    arc_key = arc_keys.create_or_load_arc_key(folder, name, selector)
    typer.echo(
        f"{arc_key.path} {'was created' if arc_key.is_new else 'exists'}. Publish this DNS record:"
    )
    typer.echo(f'{arc_key.dns_name}. TXT "{arc_key.dns_record}"')
