"""Access from graphql-core's types and fields to Strawberry's definitions."""

from collections.abc import Iterable, Mapping
from typing import Any

from graphql import (
    GraphQLField,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLObjectType,
)
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from graph.execution.generated_code import FallbackNeeded
from graph.types.object_views import DerivedField, Link, View


def strawberry_definition(
    graphql_definition: GraphQLNamedType | GraphQLField | GraphQLInputField,
) -> Any:
    """Return Strawberry's definition of a type or field; None if graphql-core created it."""
    return graphql_definition.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)


def is_attribute_field(field: GraphQLField) -> bool:
    """True if a field is read from an attribute, without arguments and resolver."""
    definition = strawberry_definition(field)
    return (
        isinstance(definition, StrawberryField)
        and not field.args
        and definition.is_basic_field
        and definition.default_resolver is getattr
    )


def is_link_field(field: GraphQLField) -> bool:
    """True if a field links to another object, which a list can load for all its items."""
    return "link" in getattr(strawberry_definition(field), "metadata", ())


def link_of_field_or_none(field: GraphQLField) -> Link | None:
    """Return the link that a field is declared with; None if there is none."""
    link: Link | None = getattr(strawberry_definition(field), "metadata", {}).get("link")
    return link


def derived_fields_of_type_or_none(
    object_type: GraphQLObjectType,
) -> Mapping[str, DerivedField] | None:
    """Return the derived fields of a view type; None if the type is not a view."""
    cls = python_class_of_type(object_type)
    return cls.derived_fields if issubclass(cls, View) else None


def python_class_of_type(object_type: GraphQLObjectType) -> type:
    """Return the Python class of an object type; of a generic type the unparametrized class.

    Raises FallbackNeeded for a type that Strawberry did not create.
    """
    definition = strawberry_definition(object_type)
    if not isinstance(definition, StrawberryObjectDefinition):
        raise FallbackNeeded("unknown")
    cls: type = (definition.concrete_of or definition).origin
    return cls


def mark_one_of_inputs(graphql_types: Iterable[GraphQLNamedType]) -> None:
    """Set the flag by which graphql-core checks oneOf inputs, with the path of the value.

    strawberry sets only its own flag, and its check has no path.
    """
    for graphql_type in graphql_types:
        if isinstance(graphql_type, GraphQLInputObjectType):
            graphql_type.is_one_of = strawberry_definition(graphql_type).is_one_of
