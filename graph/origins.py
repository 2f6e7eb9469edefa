"""The way back from graphql-core's schema to what Strawberry made it of."""

from typing import Any

from graphql import GraphQLField, GraphQLInputField, GraphQLNamedType
from strawberry.schema.schema_converter import GraphQLCoreConverter


def origin(made: GraphQLNamedType | GraphQLField | GraphQLInputField) -> Any:
    """Strawberry's definition of a type or field; None of those that graphql-core made itself."""
    return made.extensions.get(GraphQLCoreConverter.DEFINITION_BACKREF)
