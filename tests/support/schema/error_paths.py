"""Paths of mutation errors in responses, compared with the input types of the schema."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from graphql import (
    FieldNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLInputType,
    OperationDefinitionNode,
    get_named_type,
    get_nullable_type,
    is_list_type,
    parse,
)

from tests.support.schema.printed_schema import SDL


@cache
def mutation_inputs() -> dict[str, GraphQLInputType]:
    """Return the type of the argument `input` of each mutation."""
    assert SDL.mutation_type
    return {name: field.args["input"].type for name, field in SDL.mutation_type.fields.items()}


@cache
def mutations_by_response_key(document: str) -> dict[str, str]:
    """Return the mutations in a document by the key of their payload. Empty if it is invalid."""
    try:
        definitions = parse(document).definitions
    except GraphQLError:
        return {}
    return {
        (field.alias or field.name).value: field.name.value
        for operation in definitions
        if isinstance(operation, OperationDefinitionNode)
        for field in operation.selection_set.selections
        if isinstance(field, FieldNode) and field.name.value in mutation_inputs()
    }


def is_path_in_input(kind: GraphQLInputType, path: Sequence[str]) -> bool:
    """True if the path leads to a field of the input type, or to an item of a list."""
    for part in path:
        nullable = get_nullable_type(kind)
        if is_list_type(nullable) and part.isdecimal():
            kind = nullable.of_type
            continue
        named = get_named_type(kind)
        if not isinstance(named, GraphQLInputObjectType):
            return str(named) == "JSON"
        if is_list_type(nullable) or part not in named.fields:
            return False
        kind = named.fields[part].type
    return True


def assert_error_paths_exist(document: str, response: Any) -> Any:
    """Return the response. Fails if the path of a mutation error leads nowhere in the input."""
    data = response.get("data") if isinstance(response, dict) else None
    if not data or "mutation" not in document:
        return response
    for key, name in mutations_by_response_key(document).items():
        for error in (data.get(key) or {}).get("errors") or ():
            path = error.get("path") or []
            if "path" in error:
                assert is_path_in_input(mutation_inputs()[name], path), f"{name}: {error}"
    return response


def field_path(error: dict[str, Any]) -> list[str]:
    """Return the path without positions in lists."""
    return [part for part in error["path"] if not part.isdecimal()]


def item_index(error: dict[str, Any]) -> int | None:
    """Return the only position in the path, or None if there is none."""
    positions = [int(part) for part in error["path"] if part.isdecimal()]
    assert len(positions) <= 1, error
    return positions[0] if positions else None
