"""The fields of an input that have a value, with those of nested inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from strawberry import UNSET, Some
from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case


@dataclass(frozen=True, slots=True)
class PresentInputField:
    """A field of an input that has a value, with its path in the input of the mutation."""

    definition: StrawberryField
    value: Any
    path: tuple[str, ...]


def present_input_fields(
    input_value: Any, path: tuple[str, ...] = ()
) -> Iterator[PresentInputField]:
    """Yield the fields that are neither omitted nor null nor empty, outer fields first."""
    if isinstance(input_value, list):
        if input_value and has_object_definition(type(input_value[0])):
            for index, item in enumerate(input_value):
                yield from present_input_fields(item, (*path, str(index)))
        return
    input_type: Any = type(input_value)
    if not has_object_definition(input_type):
        return
    for input_name, definition in _fields_by_input_name(input_type).items():
        value = getattr(input_value, definition.python_name)
        if isinstance(value, Some):
            value = value.value
        if value is UNSET or value is None or value in ([], ""):
            continue
        at = (*path, input_name)
        yield PresentInputField(definition, value, at)
        yield from present_input_fields(value, at)


@cache
def _fields_by_input_name(kind: type) -> dict[str, StrawberryField]:
    return {
        field.graphql_name or to_camel_case(field.python_name): field
        for field in get_object_definition(kind, strict=True).fields
    }
