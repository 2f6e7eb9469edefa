"""Free data that applications store with users."""

from collections.abc import Sequence
from typing import Any

import orjson

from models.errors import Invalid

MOST = 1 << 20  # bytes of JSON


def checked(value: object, path: Sequence[str]) -> dict[str, Any] | None:
    """Return the data; None if there is none.

    Raises Invalid if it is not an object or has more than 1 MiB.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Invalid("free data is a JSON object", constraint="object", path=path)
    try:
        small = len(orjson.dumps(value)) <= MOST
    except (TypeError, ValueError, RecursionError):
        small = False
    if not small:
        raise Invalid("free data has at most 1 MiB", constraint="max", path=path)
    return value
