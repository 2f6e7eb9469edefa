"""Lists in inputs: lists of references, and items that are converted each with its own errors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from strawberry import Some
from strawberry.types import get_object_definition
from strawberry.types.base import StrawberryList, StrawberryOptional
from strawberry.utils.str_converters import to_camel_case

from models.errors import InvalidInput, RequestError
from models.validation_constraints import ValidationConstraint

Item = TypeVar("Item")
Converted = TypeVar("Converted")
# Lists of references that are a new value, and not the objects of the mutation. They can be empty.
VALUE_FIELDS = frozenset({"administers"})


class ReferenceListField(NamedTuple):
    """A field of an input with a list of references."""

    python_name: str
    graphql_name: str


def reference_list_fields(input_value: Any) -> tuple[ReferenceListField, ...]:
    """Return the fields of an input with references to its objects; none for another value."""
    input_type: Any = type(input_value)
    return _reference_list_fields_of_type(input_type)


@cache
def _reference_list_fields_of_type(input_type: Any) -> tuple[ReferenceListField, ...]:
    definition = get_object_definition(input_type)
    fields = []
    for field in definition.fields if definition else ():
        list_type = field.type.of_type if isinstance(field.type, StrawberryOptional) else field.type
        item_type = list_type.of_type if isinstance(list_type, StrawberryList) else None
        is_reference_list = getattr(item_type, "__name__", "").endswith("Ref")
        if is_reference_list and field.python_name not in VALUE_FIELDS:
            graphql_name = field.graphql_name or to_camel_case(field.python_name)
            fields.append(ReferenceListField(field.python_name, graphql_name))
    return tuple(fields)


def require_references_in_lists(mutation_input: Any) -> None:
    """Raise InvalidInput if a list of the objects of a mutation is empty."""
    for field in reference_list_fields(mutation_input):
        references = getattr(mutation_input, field.python_name)
        if (references.value if isinstance(references, Some) else references) == []:
            raise InvalidInput(
                "At least one reference is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=[field.graphql_name],
            )


class ConvertedItems(NamedTuple, Generic[Converted]):
    """The converted items, and the errors of the others, by position in the list."""

    values: dict[int, Converted]
    errors: dict[int, RequestError]


async def convert_list_items(
    items: Sequence[Item], convert: Callable[[Item], Awaitable[Converted]]
) -> ConvertedItems[Converted]:
    """Convert the items together, so that what they refer to is loaded in batches."""
    converted: ConvertedItems[Converted] = ConvertedItems({}, {})
    results = await asyncio.gather(*map(convert, items), return_exceptions=True)
    for index, result in enumerate(results):
        if isinstance(result, RequestError):
            converted.errors[index] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            converted.values[index] = result
    return converted
