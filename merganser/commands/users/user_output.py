"""Print the results of commands about users and API keys."""

from typing import Any

from merganser.commands.terminal_output import print_json, print_table


def print_table_or_json(
    rows: list[dict[str, Any]], columns: tuple[str, ...], *, as_json: bool
) -> None:
    """Print these columns of the rows as a table, or all columns as JSON."""
    if as_json:
        print_json(rows)
        return
    titles = [name.replace("_", " ") for name in columns]
    print_table(titles, [[_cell_text(each[name]) for name in columns] for each in rows])


def _cell_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
