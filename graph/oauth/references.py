"""References to OAuth clients and grants in inputs."""

from collections.abc import Sequence

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import (
    ObjectRef,
    resolve_id_from_ref_or_raise,
    resolve_ids_from_refs_or_raise,
)
from resolvers.oauth import client_loaders


@strawberry.input(one_of=True, description="Reference to one OAuth client.")
class OauthClientRef(ObjectRef):
    client_id: strawberry.Maybe[str] = attribute_field(
        "Public identifier of the client (`client_id`)."
    )


@strawberry.input(one_of=True, description="Reference to one OAuth grant.")
class OauthGrantRef(ObjectRef):
    pass


async def load_client_id(info: Info, ref: OauthClientRef, path: str) -> int:
    """Return the row ID of a reference to a client.

    Raises InvalidInput if an ID is malformed, NotFound if no client has the public identifier.
    """
    load_ids = client_loaders.load_visible_ids_by_client_id
    return await resolve_id_from_ref_or_raise(
        info, ref, path, name_field="client_id", load_ids=load_ids
    )


async def load_client_ids(info: Info, refs: Sequence[OauthClientRef], list_field: str) -> list[int]:
    """Return the row IDs of references to clients, in their order.

    Raises the errors of `load_client_id`, and LimitReached if there are too many references.
    """
    load_ids = client_loaders.load_visible_ids_by_client_id
    return await resolve_ids_from_refs_or_raise(
        info, refs, list_field, name_field="client_id", load_ids=load_ids
    )
