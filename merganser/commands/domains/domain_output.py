"""Print the results of commands about domains."""

from typing import Any

import typer

from merganser.commands.terminal_output import print_json, print_table
from merganser.settings.units import format_size


def print_table_or_json(
    rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool
) -> None:
    """Print these columns of the rows as a table, or all columns as JSON."""
    if as_json:
        print_json(rows)
        return
    titles = [name.replace("_", " ") for name in columns]
    print_table(titles, [[_cell_text(name, each[name]) for name in columns] for each in rows])


def print_txt_records(keys: list[dict[str, Any]]) -> None:
    """Print the TXT records of DKIM keys."""
    typer.echo("DNS should hold:")
    for key in keys:
        typer.echo(f"{key['name']}. TXT {_zone_file_string(key['record'])}")


def _zone_file_string(text: str) -> str:
    """Quote a text for a zone file, in strings of at most 255 bytes (RFC 1035)."""
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    return " ".join(f'"{part}"' for part in parts)


def _cell_text(column: str, value: object) -> str:
    if isinstance(value, list):
        return " | ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in ("allocated", "quota", "used") and isinstance(value, int):
        return "unlimited" if column == "quota" and not value else format_size(value)
    if column == "max_users" and not value:
        return "any"
    return "" if value is None else str(value)
