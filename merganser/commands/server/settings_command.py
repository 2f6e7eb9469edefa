"""Implementation of `merganser settings`."""

import typer

from merganser.settings.settings import settings_table


def print_settings_table() -> None:
    """Print the environment variables and their defaults as a Markdown table."""
    typer.echo(settings_table())
