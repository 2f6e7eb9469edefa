"""Implementation of `merganser settings`."""

import typer

from merganser.settings.settings_page import settings_page


def print_settings_page() -> None:
    """Print the environment variables and their defaults as a Markdown page."""
    typer.echo(settings_page())
