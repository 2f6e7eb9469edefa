"""Text that the database can store."""

import re
from typing import Any

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def make_storable(value: Any) -> Any:
    """Return a JSON value without NUL and lone surrogates, which no text column accepts."""
    if isinstance(value, str):
        return (
            value.replace("\0", "").encode(errors="replace").decode()
            if _NOT_STORABLE.search(value)
            else value
        )
    if isinstance(value, list):
        return [make_storable(item) for item in value]
    if isinstance(value, dict):
        return {make_storable(name): make_storable(item) for name, item in value.items()}
    return value


def has_nul(value: object) -> bool:
    """True if a text or key in this value contains the character NUL."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text if "\0" in text:
                return True
            case dict() as members:
                waiting += members
                waiting += members.values()
            case list() as items if set(map(type, items)) == {str}:
                waiting.append("".join(items))
            case list() as items:
                waiting += items
    return False
