"""Free data that applications store with users, addresses, filters and messages."""

from collections.abc import Sequence
from typing import Any

import orjson

from mail.text.storable_text import has_nul
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_SIZE = 1 << 20  # bytes of JSON; the setting metadata.maxSize can't exceed it
COLUMNS = ("public_metadata", "private_metadata")  # of users and addresses


def validate_custom_data(
    value: object, path: Sequence[str], max_size: int = MAX_SIZE
) -> dict[str, Any] | None:
    """Return the data; None if there is none.

    Raises InvalidInput if it is not an object, has NUL, or has more than `max_size` bytes of
    JSON.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidInput(
            "The custom data must be a JSON object.",
            constraint=ValidationConstraint.OBJECT,
            path=path,
        )
    require_custom_data_within_limit(value, path, max_size)
    return value


def require_custom_data_within_limit(value: object, path: Sequence[str], max_size: int) -> None:
    """Raise InvalidInput if a value has NUL, or more than `max_size` bytes of JSON."""
    if not 0 <= json_byte_count(value) <= max_size:
        raise InvalidInput(
            f"The custom data has at most {max_size:,} bytes of JSON.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    if has_nul(value):
        raise InvalidInput(
            "The custom data must not contain NUL.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )


def json_byte_count(value: object) -> int:
    """Return the size of a value as JSON in bytes; 0 for None, -1 if it is not valid JSON."""
    if value is None:
        return 0
    try:
        return len(orjson.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return -1
