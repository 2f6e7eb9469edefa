"""Print the results of commands about domains."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_table_or_json(
    rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool
) -> None:
    """Print these columns of the rows as a table, or all columns as JSON."""
    import json

    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from merganser.commands import terminal_tables

    titles = [name.replace("_", " ") for name in columns]
    terminal_tables.print_table(
        titles, [[_cell_text(name, each[name]) for name in columns] for each in rows]
    )


def _cell_text(column: str, value: object) -> str:
    from merganser.settings.units import format_size

    if isinstance(value, list):
        return " | ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in ("allocated", "quota", "used") and isinstance(value, int):
        return "unlimited" if column == "quota" and not value else format_size(value)
    if column == "max_users" and not value:
        return "any"
    return "" if value is None else str(value)
