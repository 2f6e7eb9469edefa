"""Free data of applications, which we keep beside what is ours."""

from collections.abc import Sequence
from typing import Any

import orjson

from models.errors import Invalid

MOST = 1 << 20  # bytes, as JSON


def checked(value: object, path: Sequence[str]) -> dict[str, Any] | None:
    """The data, None where there is none; Invalid where it is no object, or has more than 1 MiB."""
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
