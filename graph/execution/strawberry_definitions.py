"""Access from graphql-core's types and fields to Strawberry's definitions."""

from typing import Any

from graphql import GraphQLField, GraphQLInputField, GraphQLNamedType
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from graph.types.object_views import Link


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


def link_of(field: GraphQLField) -> Link | None:
    """Return the link that a field is declared with; None if there is none."""
    found: Link | None = getattr(strawberry_definition(field), "metadata", {}).get("link")
    return found
