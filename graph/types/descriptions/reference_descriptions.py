"""Descriptions of the global IDs in reference inputs."""

import re

from graphql import GraphQLInputObjectType, GraphQLSchema

from graph.types.object_references import ID_DESCRIPTION

REFERENCE_DESCRIPTION = re.compile(r"Reference to one (?P<noun>[^.]+)\.")


def name_objects_of_references(schema: GraphQLSchema) -> None:
    """Name the object in the description of each reference's `id`, by that of the reference."""
    for kind in schema.type_map.values():
        if not isinstance(kind, GraphQLInputObjectType) or "id" not in kind.fields:
            continue
        reference = REFERENCE_DESCRIPTION.match(kind.description or "")
        field = kind.fields["id"]
        if reference and field.description == ID_DESCRIPTION:
            field.description = f"Global ID of the {reference['noun']}."
