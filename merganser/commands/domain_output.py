"""Print the results of commands about domains."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def shown(found: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool) -> None:
    """Print these columns of the rows as a table, or all columns as JSON."""
    import json

    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from merganser.commands import terminal_tables

    titles = [name.replace("_", " ") for name in columns]
    terminal_tables.shown(titles, [[_cell(name, each[name]) for name in columns] for each in found])


def _cell(name: str, value: object) -> str:
    from merganser.settings.units import sized

    if isinstance(value, list):
        return " | ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("allocated", "quota", "used") and isinstance(value, int):
        return "unlimited" if name == "quota" and not value else sized(value)
    if name == "max_users" and not value:
        return "any"
    return "" if value is None else str(value)
