"""The limit of the data that applications store with objects, for the inputs of all mutations."""

from typing import Any

from graph.types.input_fields import present_input_fields
from resolvers.users.custom_data import require_custom_data_within_limit

CUSTOM_DATA_FIELDS = frozenset({"metadata", "private_metadata"})  # in Python


def require_custom_data_of_input_within_limit(input_value: Any, max_size: int) -> None:
    """Raise InvalidInput for metadata with more than `max_size` bytes, with their path."""
    for field in present_input_fields(input_value):
        if field.definition.python_name in CUSTOM_DATA_FIELDS and isinstance(field.value, dict):
            require_custom_data_within_limit(field.value, field.path, max_size)
