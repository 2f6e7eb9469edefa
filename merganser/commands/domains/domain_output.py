"""Print the results of commands about domains."""

from collections.abc import Mapping
from typing import Any

import typer

from merganser.settings.units import format_size_in_whole_units


def print_txt_records(keys: list[dict[str, Any]]) -> None:
    """Print the TXT records of DKIM keys."""
    typer.echo("Publish these DNS records:")
    for key in keys:
        typer.echo(f"{key['name']}. TXT {_zone_file_string(key['record'])}")


def _zone_file_string(text: str) -> str:
    """Quote a text for a zone file, in strings of at most 255 bytes (RFC 1035)."""
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    return " ".join(f'"{part}"' for part in parts)


def domain_cell_text(column: str, value: object) -> str:
    """Return the text of a value in a table of domains, DNS records or DKIM keys."""
    if isinstance(value, list):
        return " | ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column in ("allocated", "quota", "used") and isinstance(value, int):
        return format_size_in_whole_units(value)
    if column in ("max_users", "quota") and value is None:
        return "unlimited"
    return "" if value is None else str(value)


def problem_text(record: Mapping[str, Any]) -> str:
    """Return the problem of a DNS record, and why a record that DNS lacks is optional."""
    texts = [record["problem"]]
    if record["optional_reason"] and record["state"] != "OK":
        texts.append(f"Optional: {record['optional_reason']}")
    return " ".join(text for text in texts if text)
