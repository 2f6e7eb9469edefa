"""Coercion of variables by functions that are made once per input type.

They only accept values that are certainly valid. All other values are left to graphql-core,
which reports the errors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

from graphql import (
    GraphQLID,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLSchema,
    GraphQLString,
    Undefined,
    VariableDefinitionNode,
    is_required_input_field,
)
from graphql.execution.get_variable_signature import (
    GraphQLVariableSignature,
    get_variable_signature,
)
from graphql.execution.values import VariableValues, VariableValueSource
from graphql.utilities.coerce_input_value import coerce_default_value

MAX_DEPTH = 16  # of nested lists and objects; deeper values are left to graphql-core
TEXT_TYPES = (GraphQLID, GraphQLString)

CoerceFunction = Callable[[Any, int], Any]  # value, its depth inside the variable


class NeedsGraphqlCoreCoercion(Exception):
    """A value that graphql-core must coerce, since it may be invalid."""


def variable_signatures_or_none(
    schema: GraphQLSchema, nodes: Iterable[VariableDefinitionNode]
) -> list[GraphQLVariableSignature] | None:
    """Return the signatures of an operation's variables; None if one is invalid."""
    result: list[GraphQLVariableSignature] = []
    for node in nodes:
        signature = get_variable_signature(schema, node)
        if not isinstance(signature, GraphQLVariableSignature):
            return None
        result.append(signature)
    return result


def try_to_coerce_variables(
    variable_signatures: Sequence[GraphQLVariableSignature], raw_values: Mapping[str, Any]
) -> VariableValues | None:
    """Coerce the variables of a request; None if graphql-core must coerce them."""
    sources, values = {}, {}
    try:
        for signature in variable_signatures:
            name = signature.name
            if name in raw_values:
                sources[name] = VariableValueSource(signature, raw_values[name])
                values[name] = coercion_function(signature.type)(raw_values[name], 0)
                continue
            sources[name] = VariableValueSource(signature)
            if signature.default is not None:
                values[name] = coerce_default_value(signature)
            elif isinstance(signature.type, GraphQLNonNull):
                return None
    except Exception:  # noqa: BLE001 - graphql-core reports the error
        return None
    return VariableValues(sources, values)


@cache
def coercion_function(input_type: GraphQLInputType) -> CoerceFunction:
    """Return the function that coerces values of an input type.

    It raises an exception for a value that it doesn't accept.
    """
    if isinstance(input_type, GraphQLNonNull):
        return _required_coercion_function(input_type)
    if isinstance(input_type, GraphQLList):
        return _list_coercion_function(input_type)
    if isinstance(input_type, GraphQLInputObjectType):
        return _object_coercion_function(input_type)
    coerce_leaf, is_text = input_type.coerce_input_value, input_type in TEXT_TYPES

    def coerce_leaf_value(value: Any, _depth: int) -> Any:
        if value is None or (is_text and type(value) is str):
            return value
        coerced = coerce_leaf(value)
        if coerced is Undefined:
            raise NeedsGraphqlCoreCoercion
        return coerced

    return coerce_leaf_value


def _required_coercion_function(input_type: GraphQLNonNull[Any]) -> CoerceFunction:
    inner = coercion_function(input_type.of_type)

    def coerce_required(value: Any, depth: int) -> Any:
        if value is None:
            raise NeedsGraphqlCoreCoercion
        return inner(value, depth)

    return coerce_required


def _list_coercion_function(input_type: GraphQLList[Any]) -> CoerceFunction:
    item = input_type.of_type
    texts = (item.of_type if isinstance(item, GraphQLNonNull) else item) in TEXT_TYPES

    def coerce_list(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if type(value) is not list or depth > MAX_DEPTH:
            raise NeedsGraphqlCoreCoercion
        if texts and set(map(type, value)) <= {str}:
            return value.copy()
        inner = coercion_function(item)
        return [inner(item, depth + 1) for item in value]

    return coerce_list


class InputFieldPlan(NamedTuple):
    """What the coercion of an input field needs. `out_name` is its key in the coerced value."""

    name: str
    out_name: str
    field: Any
    is_required: bool
    default: Any  # Undefined if there is none


def _object_coercion_function(input_type: GraphQLInputObjectType) -> CoerceFunction:
    """Return the function that coerces values of an input object.

    The function raises NeedsGraphqlCoreCoercion for a value that is invalid or too deep, so that
    graphql-core coerces it again and reports the error.
    """
    fields: list[InputFieldPlan] = []

    def coerce_object(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if not fields:  # input types can be recursive: read when the first value comes
            fields.extend(input_field_plans(input_type))
        if (
            type(value) is not dict
            or depth > MAX_DEPTH
            or not value.keys() <= input_type.fields.keys()
        ):
            raise NeedsGraphqlCoreCoercion
        if input_type.is_one_of and (len(value) != 1 or None in value.values()):
            raise NeedsGraphqlCoreCoercion
        coerced = {}
        for name, out_name, field, is_required, default in fields:
            if name in value:
                coerced[out_name] = coercion_function(field.type)(value[name], depth + 1)
            elif is_required:
                raise NeedsGraphqlCoreCoercion
            elif default is not Undefined:
                coerced[out_name] = fresh_default(default)
        return input_type.out_type(coerced)

    return coerce_object


def fresh_default(default: Any) -> Any:
    """Return a default value that a resolver can change."""
    return deepcopy(default) if isinstance(default, list | dict) else default


def input_field_plans(input_type: GraphQLInputObjectType) -> Iterable[InputFieldPlan]:
    """Yield what the coercion of an input object needs of each field."""
    for name, field in input_type.fields.items():
        is_required = is_required_input_field(field)
        default = Undefined if is_required else coerce_default_value(field)
        yield InputFieldPlan(name, field.out_name or name, field, is_required, default)
