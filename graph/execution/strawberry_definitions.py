"""The way back from graphql-core's schema to what Strawberry made it of."""

from typing import Any

from graphql import GraphQLField, GraphQLInputField, GraphQLNamedType
from strawberry.schema.schema_converter import GraphQLCoreConverter
from strawberry.types.field import StrawberryField

from graph.types.object_views import Link


def origin(made: GraphQLNamedType | GraphQLField | GraphQLInputField) -> Any:
    """Strawberry's definition of a type or field; None of those that graphql-core made itself."""
    return made.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)


def is_plain(field: GraphQLField) -> bool:
    """Say whether a field is nothing but an attribute of its object."""
    definition = origin(field)
    return (
        isinstance(definition, StrawberryField)
        and not field.args
        and definition.is_basic_field
        and definition.default_resolver is getattr
    )


def is_link(field: GraphQLField) -> bool:
    """Say whether a list may have filled a field for all its items."""
    return "link" in getattr(origin(field), "metadata", ())


def link_of(field: GraphQLField) -> Link | None:
    """The link that a field is; None if it is none."""
    found: Link | None = getattr(origin(field), "metadata", {}).get("link")
    return found
