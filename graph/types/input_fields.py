"""The fields of the input of a mutation, with those of nested inputs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from graphql import GraphQLInputObjectType, get_named_type
from strawberry import UNSET, Some
from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

from graph.execution.strawberry_definitions import strawberry_definition


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


def mutation_input_type(info: Any) -> Any:
    """Return the GraphQL type of the input of a mutation, from the resolve info of its field."""
    raw_info = getattr(info, "_raw_info", info)  # of Strawberry's Info
    return raw_info.parent_type.fields[raw_info.field_name].args["input"].type


@cache
def has_input_field(input_type: Any, is_wanted: Callable[[StrawberryField], bool]) -> bool:
    """True if an input type, or an input in it, has such a field."""
    pending, seen = [get_named_type(input_type)], set()
    while pending:
        named_type = pending.pop()
        if not isinstance(named_type, GraphQLInputObjectType) or named_type in seen:
            continue
        seen.add(named_type)
        for field in named_type.fields.values():
            if is_wanted(strawberry_definition(field)):
                return True
            pending.append(get_named_type(field.type))
    return False
