"""Text that the database can store."""

import re
from typing import Any

_ODD = re.compile("[\0\ud800-\udfff]")


def storable(value: Any) -> Any:
    """Return a JSON value without NUL and lone surrogates, which no text column accepts."""
    if isinstance(value, str):
        return (
            value.replace("\0", "").encode(errors="replace").decode()
            if _ODD.search(value)
            else value
        )
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): storable(item) for name, item in value.items()}
    return value
