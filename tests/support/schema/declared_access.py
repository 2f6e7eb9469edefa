"""The access to data of other users that the fields of the schema declare."""

from typing import Any

from graph.execution.strawberry_definitions import strawberry_definition
from graph.schema import schema
from graph.types.fields import Auth
from graph.types.object_access import ObjectAccess
from graph.types.requirement_texts import declared_access_or_none

TYPES_WITH_ACCESS = ("Query", "Mutation", "Subscription", "User")


def _fields() -> dict[str, Any]:
    types: Any = schema._schema.type_map  # noqa: SLF001 - strawberry has no other way in
    return {
        f"{type_name}.{name}": field
        for type_name in TYPES_WITH_ACCESS
        for name, field in types[type_name].fields.items()
    }


def declared_access_by_coordinate() -> dict[str, ObjectAccess]:
    """The access of each field that declares one."""
    declared = {
        coordinate: declared_access_or_none(field) for coordinate, field in _fields().items()
    }
    return {coordinate: access for coordinate, access in declared.items() if access}


def guard_of(coordinate: str) -> Auth:
    """The declared role, scope and permissions of a field; an empty guard if it declares none."""
    directives = strawberry_definition(_fields()[coordinate]).directives
    return next((directive for directive in directives if isinstance(directive, Auth)), Auth())
