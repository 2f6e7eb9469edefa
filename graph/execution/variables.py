"""Coercion of variables by functions that are made once per input type.

They only accept values that are certainly valid. All other values are left to graphql-core,
which reports the errors.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

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

DEEPEST = 16  # of nested lists and objects; deeper values are left to graphql-core
TEXTS = (GraphQLID, GraphQLString)

Coerce = Callable[[Any, int], Any]  # value, its depth inside the variable


class Strange(Exception):
    """A value that graphql-core must coerce, since it may be invalid."""


Signatures = list[tuple[GraphQLVariableSignature, bool]]  # signature, has a default


def signatures(schema: GraphQLSchema, nodes: Iterable[VariableDefinitionNode]) -> Signatures | None:
    """Return the signatures of an operation's variables; None if one is invalid."""
    found: Signatures = []
    for node in nodes:
        signature = get_variable_signature(schema, node)
        if not isinstance(signature, GraphQLVariableSignature):
            return None
        found.append((signature, node.default_value is not None))
    return found


def coerced(declared: Signatures, given: Mapping[str, Any]) -> VariableValues | None:
    """Coerce the variables of a request; None if graphql-core must coerce them."""
    sources, found = {}, {}
    try:
        for signature, has_default in declared:
            name = signature.name
            if name in given:
                sources[name] = VariableValueSource(signature, given[name])
                found[name] = coercing(signature.type)(given[name], 0)
            elif has_default or isinstance(signature.type, GraphQLNonNull):
                return None
            else:
                sources[name] = VariableValueSource(signature)
    except Exception:  # noqa: BLE001 - graphql-core reports the error
        return None
    return VariableValues(sources, found)


@cache
def coercing(kind: GraphQLInputType) -> Coerce:
    """Return the function that coerces values of an input type.

    It raises an exception for a value that it doesn't accept.
    """
    if isinstance(kind, GraphQLNonNull):
        return _required(kind)
    if isinstance(kind, GraphQLList):
        return _listed(kind)
    if isinstance(kind, GraphQLInputObjectType):
        return _made(kind)
    read, text = kind.coerce_input_value, kind in TEXTS

    def leaf(value: Any, _depth: int) -> Any:
        if value is None or (text and type(value) is str):
            return value
        found = read(value)
        if found is Undefined:
            raise Strange
        return found

    return leaf


def _required(kind: GraphQLNonNull[Any]) -> Coerce:
    inner = coercing(kind.of_type)

    def required(value: Any, depth: int) -> Any:
        if value is None:
            raise Strange
        return inner(value, depth)

    return required


def _listed(kind: GraphQLList[Any]) -> Coerce:
    item = kind.of_type
    texts = (item.of_type if isinstance(item, GraphQLNonNull) else item) in TEXTS

    def listed(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if type(value) is not list or depth > DEEPEST:
            raise Strange
        if texts and set(map(type, value)) <= {str}:
            return value.copy()
        inner = coercing(item)
        return [inner(one, depth + 1) for one in value]

    return listed


def _made(kind: GraphQLInputObjectType) -> Coerce:
    fields: list[tuple[str, str, Any, bool, Any]] = []

    def made(value: Any, depth: int) -> Any:
        if value is None:
            return None
        if not fields:  # input types can be recursive: read when the first value comes
            fields.extend(_fields(kind))
        if type(value) is not dict or depth > DEEPEST or not value.keys() <= kind.fields.keys():
            raise Strange
        if kind.is_one_of and (len(value) != 1 or None in value.values()):
            raise Strange
        found = {}
        for name, out, field, required, default in fields:
            if name in value:
                found[out] = coercing(field.type)(value[name], depth + 1)
            elif required:
                raise Strange
            elif default is not Undefined:
                found[out] = deepcopy(default) if isinstance(default, list | dict) else default
        return kind.out_type(found)

    return made


def _fields(kind: GraphQLInputObjectType) -> Iterable[tuple[str, str, Any, bool, Any]]:
    for name, field in kind.fields.items():
        required = is_required_input_field(field)
        default = Undefined if required else coerce_default_value(field)
        yield name, field.out_name or name, field, required, default
