"""Resolvers for graphql-core with arguments and extensions that are prepared once.

Strawberry's resolvers prepare input conversion and extensions at each call. These resolvers
behave the same. A field that can't be bound in this way keeps Strawberry's resolver.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from functools import partial
from typing import Any, cast

from graphql import GraphQLObjectType
from strawberry import UNSET, Some
from strawberry.exceptions import StrawberryInputCoercionError
from strawberry.extensions import FieldExtension
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.base import (
    StrawberryContainer,
    StrawberryList,
    StrawberryMaybe,
    StrawberryOptional,
)
from strawberry.types.field import StrawberryField
from strawberry.types.lazy_type import LazyType

from graph.execution.strawberry_definitions import origin
from graph.types.fields import Guard, Info

Convert = Callable[[Any], Any]
Resolve = Callable[..., Any]


class Inputs:
    """Converters from GraphQL values to Python arguments, created once per input type."""

    def __init__(self, converter: GraphQLCoreConverter) -> None:
        self._converter = converter
        self._objects: dict[type, Convert] = {}

    def arguments(self, field: StrawberryField) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return the function that creates the keyword arguments of a field's resolver."""
        named = self._converter.config.name_converter.from_argument
        known = [(named(one), one.python_name, self._of(one.type)) for one in field.arguments]

        def made(given: dict[str, Any]) -> dict[str, Any]:
            return {
                python: given[name] if convert is None else convert(given[name])
                for name, python, convert in known
                if name in given
            }

        return made

    def _of(self, kind: Any) -> Convert | None:
        """Return the converter of a type; None if graphql-core's value is used unchanged.

        Raises TypeError for a container that no input of the schema has.
        """
        if isinstance(kind, StrawberryMaybe):
            return self._maybe(kind)
        if isinstance(kind, StrawberryOptional):
            return self._of(kind.of_type)
        if isinstance(kind, LazyType):
            return self._of(kind.resolve_type())
        if isinstance(kind, StrawberryList):
            return self._list(kind)
        if isinstance(kind, StrawberryContainer):
            raise TypeError(f"no input of ours: {kind}")
        if isinstance(kind, type) and has_object_definition(kind):
            return partial(self._object, kind)
        return None

    def _maybe(self, kind: StrawberryMaybe) -> Convert:
        inner, nullable = self._of(kind.of_type), isinstance(kind.of_type, StrawberryOptional)

        def maybe(value: Any) -> Any:
            if value is None and not nullable:
                raise StrawberryInputCoercionError("found null")
            return Some(value if inner is None else inner(value))

        return maybe

    def _list(self, kind: StrawberryList) -> Convert:
        inner = self._of(kind.of_type)

        def listed(value: Any) -> Any:
            if value is None or value is UNSET:
                return value
            return list(value) if inner is None else [inner(item) for item in value]

        return listed

    def _object(self, kind: type, value: Any) -> Any:
        """Convert a dict to an input object. Recursive inputs need the late look-up."""
        if value is None or value is UNSET:
            return value
        if kind not in self._objects:
            self._objects[kind] = self._maker(kind)
        return self._objects[kind](value)

    def _maker(self, kind: type) -> Convert:
        definition = get_object_definition(kind, strict=True)
        named = self._converter.config.name_converter.from_field
        known = [
            (named(one), one.python_name, self._of(one.resolve_type(type_definition=definition)))
            for one in definition.fields
        ]
        absent = {
            one.python_name: None
            for one in definition.fields
            if one.default_value is MISSING and one.default_factory is MISSING
        }

        def maker(value: Mapping[str, Any]) -> Any:
            given = {
                python: value[name] if convert is None else convert(value[name])
                for name, python, convert in known
                if name in value
            }
            return kind(**{**absent, **given})

        return maker


def quicken(types: Mapping[str, Any], converter: GraphQLCoreConverter) -> None:
    """Replace the resolvers of all fields of these types by prepared resolvers."""
    inputs = Inputs(converter)
    for kind in types.values():
        if not isinstance(kind, GraphQLObjectType):
            continue
        for field in kind.fields.values():
            definition = origin(field)
            if isinstance(definition, StrawberryField) and _is_ours(definition):
                field.resolve = _resolver(definition, inputs)


def _is_ours(field: StrawberryField) -> bool:
    resolver = field.base_resolver
    if resolver is None or field.is_subscription:
        return False
    if resolver.parent_parameter or resolver.root_parameter:
        return False
    return all(
        field.is_async
        and one.supports_async
        and type(one).map_arguments is FieldExtension.map_arguments
        for one in field.extensions
    )


def _resolver(field: StrawberryField, inputs: Inputs) -> Resolve:
    made, inner = inputs.arguments(field), _called(field)
    guards = [one for one in field.extensions if isinstance(one, Guard)]
    for extension in field.extensions:  # the last extension is the outermost
        if type(extension) is not Guard:
            inner = partial(extension.resolve_async, inner)

    def resolve(source: Any, raw: Any, /, **given: Any) -> Any:
        for guard in guards:  # before the conversion of arguments, which can fail
            if (refusal := guard.refuse(raw)) is not None:
                return refusal
        return inner(source, Info(_raw_info=raw, _field=field), **made(given))

    return resolve


def _called(field: StrawberryField) -> Resolve:
    """Return a call of the resolver function with `self` and `info` if it has them."""
    resolver = field.base_resolver
    assert resolver is not None  # noqa: S101 - `_can_bind_resolver` has checked it
    function = cast("Resolve", resolver.wrapped_func)
    bound, asks = resolver.self_parameter, resolver.info_parameter
    if asks is None and bound is None:
        return lambda _source, _info, **given: function(**given)
    if asks is None:
        return lambda source, _info, **given: function(source, **given)
    name = asks.name
    if bound is None:
        return lambda _source, info, **given: function(**{name: info}, **given)
    return lambda source, info, **given: function(source, **{name: info}, **given)
