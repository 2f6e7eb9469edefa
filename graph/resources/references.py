"""References to resources in inputs."""

from collections.abc import Sequence

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import (
    ObjectRef,
    resolve_id_from_ref_or_raise,
    resolve_ids_from_refs_or_raise,
)
from graph.types.scalars import EmailAddress
from resolvers.resources import loaders


@strawberry.input(one_of=True, description="Reference to one resource.")
class ResourceRef(ObjectRef):
    address: strawberry.Maybe[EmailAddress] = attribute_field(
        "Address of the resource, in any spelling. Its domain part can be an alias domain."
    )


async def resolve_resource_id_or_raise(info: Info, ref: ResourceRef, path: str) -> int:
    """Return the row ID of a reference to a resource.

    Raises InvalidInput if an ID is malformed, NotFound if no visible resource has the address.
    """
    return await resolve_id_from_ref_or_raise(
        info,
        ref,
        path,
        name_field="address",
        load_ids=loaders.load_visible_resource_ids_by_address,
    )


async def resolve_resource_ids_or_raise(info: Info, refs: Sequence[ResourceRef]) -> list[int]:
    """Return the row IDs of references to resources, in their order.

    Raises as `resolve_resource_id_or_raise`, and LimitReached if there are too many references.
    """
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        "resources",
        name_field="address",
        load_ids=loaders.load_visible_resource_ids_by_address,
    )
