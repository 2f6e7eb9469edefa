"""Parts of the paths of mutation errors: the names of fields, and the position in a list."""

from typing import Any


def field_path(error: dict[str, Any]) -> list[str]:
    """Return the path without positions in lists."""
    return [part for part in error["path"] if not part.isdecimal()]


def item_index(error: dict[str, Any]) -> int | None:
    """Return the only position in the path, or None if there is none."""
    positions = [int(part) for part in error["path"] if part.isdecimal()]
    assert len(positions) <= 1, error
    return positions[0] if positions else None
