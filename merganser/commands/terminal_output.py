"""Tables and JSON on stdout. Tables are wrapped on a terminal and have whole lines in a pipe."""

import json
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 400  # characters, so that lines in a pipe are not wrapped


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Text | str]]) -> None:
    """Print a table. Brackets in texts are not markup."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(each if isinstance(each, Text) else Text(each) for each in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
