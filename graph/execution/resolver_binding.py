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

from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.fields import FieldGuard, Info

ConvertFunction = Callable[[Any], Any]
ResolveFunction = Callable[..., Any]


class ArgumentConverters:
    """Converters from GraphQL values to Python arguments, created once per input type."""

    def __init__(self, converter: GraphQLCoreConverter) -> None:
        self._converter = converter
        self._input_converters: dict[type, ConvertFunction] = {}

    def arguments_converter(
        self, field: StrawberryField
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return the function that creates the keyword arguments of a field's resolver."""
        public_name = self._converter.config.name_converter.from_argument
        arguments = [
            (public_name(argument), argument.python_name, self._value_converter(argument.type))
            for argument in field.arguments
        ]

        def convert_arguments(raw_arguments: dict[str, Any]) -> dict[str, Any]:
            return {
                python: raw_arguments[name] if convert is None else convert(raw_arguments[name])
                for name, python, convert in arguments
                if name in raw_arguments
            }

        return convert_arguments

    def _value_converter(self, input_type: Any) -> ConvertFunction | None:
        """Return the converter of a type; None if graphql-core's value is used unchanged.

        Raises TypeError for a container or lazy type, which no input of the schema has.
        """
        if isinstance(input_type, StrawberryMaybe):
            return self._maybe_converter(input_type)
        if isinstance(input_type, StrawberryOptional):
            return self._value_converter(input_type.of_type)
        if isinstance(input_type, StrawberryList):
            return self._list_converter(input_type)
        if isinstance(input_type, StrawberryContainer | LazyType):
            raise TypeError(f"not an input type of the schema: {input_type}")
        if isinstance(input_type, type) and has_object_definition(input_type):
            return partial(self._convert_input, input_type)
        return None

    def _maybe_converter(self, input_type: StrawberryMaybe) -> ConvertFunction:
        inner = self._value_converter(input_type.of_type)
        nullable = isinstance(input_type.of_type, StrawberryOptional)

        def convert_maybe(value: Any) -> Any:
            if value is None and not nullable:
                raise StrawberryInputCoercionError("found null")
            return Some(value if inner is None else inner(value))

        return convert_maybe

    def _list_converter(self, input_type: StrawberryList) -> ConvertFunction:
        inner = self._value_converter(input_type.of_type)

        def convert_list(value: Any) -> Any:
            if value is None or value is UNSET:
                return value
            return list(value) if inner is None else [inner(item) for item in value]

        return convert_list

    def _convert_input(self, input_class: type, value: Any) -> Any:
        """Convert a dict to an input object. Recursive inputs need the late look-up."""
        if value is None or value is UNSET:
            return value
        if input_class not in self._input_converters:
            self._input_converters[input_class] = self._input_converter(input_class)
        return self._input_converters[input_class](value)

    def _input_converter(self, input_class: type) -> ConvertFunction:
        definition = get_object_definition(input_class, strict=True)
        public_name = self._converter.config.name_converter.from_field
        input_fields = [
            (
                public_name(field),
                field.python_name,
                self._value_converter(field.resolve_type(type_definition=definition)),
            )
            for field in definition.fields
        ]
        absent = {
            field.python_name: None
            for field in definition.fields
            if field.default_value is MISSING and field.default_factory is MISSING
        }

        def convert_fields(value: Mapping[str, Any]) -> Any:
            arguments = {
                python: value[name] if convert is None else convert(value[name])
                for name, python, convert in input_fields
                if name in value
            }
            return input_class(**{**absent, **arguments})

        return convert_fields


def bind_resolvers(graphql_types: Mapping[str, Any], converter: GraphQLCoreConverter) -> None:
    """Replace the resolvers of all fields of these types by prepared resolvers."""
    inputs = ArgumentConverters(converter)
    for kind in graphql_types.values():
        if not isinstance(kind, GraphQLObjectType):
            continue
        for field in kind.fields.values():
            definition = strawberry_definition(field)
            if isinstance(definition, StrawberryField) and _can_bind_resolver(definition):
                field.resolve = _bound_resolver(definition, inputs)


def _can_bind_resolver(field: StrawberryField) -> bool:
    resolver = field.base_resolver
    if resolver is None or field.is_subscription:
        return False
    if resolver.parent_parameter or resolver.root_parameter:
        return False
    return all(
        (not extension.has_resolver or (field.is_async and extension.supports_async))
        and type(extension).map_arguments is FieldExtension.map_arguments
        for extension in field.extensions
    )


def _bound_resolver(field: StrawberryField, converters: ArgumentConverters) -> ResolveFunction:
    convert_arguments, inner = converters.arguments_converter(field), _resolver_function(field)
    guards = [extension for extension in field.extensions if isinstance(extension, FieldGuard)]
    for extension in field.extensions:  # the last extension is the outermost
        if extension.has_resolver and type(extension) is not FieldGuard:
            inner = partial(extension.resolve_async, inner)

    def resolve(source: Any, raw: Any, /, **arguments: Any) -> Any:
        for guard in guards:  # before the conversion of arguments, which can fail
            if (refusal := guard.require_guard_or_return_refusal(raw)) is not None:
                return refusal
        return inner(source, Info(_raw_info=raw, _field=field), **convert_arguments(arguments))

    return resolve


def _resolver_function(field: StrawberryField) -> ResolveFunction:
    """Return a call of the resolver function with `self` and `info` if it has them."""
    resolver = field.base_resolver
    assert resolver is not None  # noqa: S101 - `_can_bind_resolver` has checked it
    function = cast("ResolveFunction", resolver.wrapped_func)
    self_parameter, info_parameter = resolver.self_parameter, resolver.info_parameter
    if info_parameter is None and self_parameter is None:
        return lambda _source, _info, **given: function(**given)
    if info_parameter is None:
        return lambda source, _info, **given: function(source, **given)
    name = info_parameter.name
    if self_parameter is None:
        return lambda _source, info, **given: function(**{name: info}, **given)
    return lambda source, info, **given: function(source, **{name: info}, **given)
