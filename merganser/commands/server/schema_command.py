"""Implementation of `merganser schema`."""

import typer

from graph.schema import schema


def print_schema() -> None:
    """Print the GraphQL schema."""
    typer.echo(schema.as_str())
