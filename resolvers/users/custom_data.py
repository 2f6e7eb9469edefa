"""Free data that applications store with users."""

from collections.abc import Sequence
from typing import Any

import orjson

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_SIZE = 1 << 20  # bytes of JSON


def validate_custom_data(value: object, path: Sequence[str]) -> dict[str, Any] | None:
    """Return the data; None if there is none.

    Raises InvalidInput if it is not an object or has more than 1 MiB.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidInput(
            "The custom data must be a JSON object.",
            constraint=ValidationConstraint.OBJECT,
            path=path,
        )
    try:
        is_small = len(orjson.dumps(value)) <= MAX_SIZE
    except (TypeError, ValueError, RecursionError):
        is_small = False
    if not is_small:
        raise InvalidInput(
            "The custom data has at most 1 MiB.", constraint=ValidationConstraint.MAX, path=path
        )
    return value
