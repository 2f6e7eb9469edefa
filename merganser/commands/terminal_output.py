"""Tables and JSON on stdout. Tables are wrapped on a terminal and have whole lines in a pipe."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from merganser.errors import EXIT_FAILURE

PIPE_WIDTH = 400  # characters, so that lines in a pipe are not wrapped


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Text | str]]) -> None:
    """Print a table. Brackets in texts are not markup."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table)


def print_table_or_json(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    cell_text: Callable[[str, object], str],
    *,
    as_json: bool,
) -> None:
    """Print these columns of the rows as a table, or all columns as JSON.

    `cell_text` gets the name of a column and a value of it.
    """
    if as_json:
        print_json(rows)
        return
    titles = [name.replace("_", " ") for name in columns]
    print_table(titles, [[cell_text(name, row[name]) for name in columns] for row in rows])


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def text_or_empty(_column: str, value: Any) -> str:
    """Return the text of a value in a table; none for None."""
    return "" if value is None else str(value)


def exit_if_nodes_are_missing(text: str, nodes: Sequence[str]) -> None:
    """Print a text about nodes in place of `{}`, and end with exit code 1 if there is one."""
    if nodes:
        typer.echo(text.format(", ".join(nodes)), err=True)
        raise typer.Exit(EXIT_FAILURE)
