"""The limit of the data that applications store with objects, for the inputs of all mutations."""

from typing import Any

from strawberry.types.field import StrawberryField

from graph.types.fields import Info
from graph.types.input_fields import has_input_field, mutation_input_type, present_input_fields
from resolvers.users.custom_data import require_custom_data_within_limit

CUSTOM_DATA_FIELDS = frozenset({"metadata", "private_metadata"})  # in Python


def require_custom_data_of_input_within_limit(info: Info, input_value: Any) -> None:
    """Raise InvalidInput for metadata above the limit of the server, with their path."""
    if not has_input_field(mutation_input_type(info), _has_custom_data):
        return
    max_size = info.context.environment.options.metadata_max_size
    for field in present_input_fields(input_value):
        if _has_custom_data(field.definition) and isinstance(field.value, dict):
            require_custom_data_within_limit(field.value, field.path, max_size)


def _has_custom_data(field: StrawberryField) -> bool:
    return field.python_name in CUSTOM_DATA_FIELDS
