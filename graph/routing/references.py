"""References to relay hosts, transports, TLS policies and forwarding hosts in inputs."""

from collections.abc import Sequence
from functools import partial

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_references import (
    ObjectRef,
    ids_from_refs,
    resolve_id_from_ref_or_raise,
    resolve_ids_from_refs_or_raise,
)
from graph.types.scalars import CIDR
from resolvers.routing import forwarding_hosts
from resolvers.routing import loaders as routing_loaders
from resolvers.routing.loaders import POLICIES, TRANSPORTS

DESTINATION_DESCRIPTION = "Destination, in any form that the create mutation accepts."


@strawberry.input(one_of=True, description="Reference to one relay host.")
class RelayHostRef(ObjectRef):
    pass


@strawberry.input(one_of=True, description="Reference to one transport.")
class TransportRef(ObjectRef):
    destination: strawberry.Maybe[str] = attribute_field(DESTINATION_DESCRIPTION)


@strawberry.input(one_of=True, description="Reference to one TLS policy.")
class TlsPolicyRef(ObjectRef):
    destination: strawberry.Maybe[str] = attribute_field(DESTINATION_DESCRIPTION)


@strawberry.input(one_of=True, description="Reference to one forwarding host.")
class ForwardingHostRef(ObjectRef):
    host: strawberry.Maybe[CIDR] = attribute_field(
        "IP address or network of the forwarding host, exactly as large as the stored one."
    )


async def resolve_routing_ids_or_raise(
    info: Info, refs: Sequence[ObjectRef], list_field: str
) -> list[int]:
    """Return the row IDs of references to routing records, in their order.

    Raises InvalidInput if an ID is malformed, NotFound if no record has the destination or host.
    """
    if not refs or isinstance(refs[0], RelayHostRef):
        return ids_from_refs(info, refs, list_field)
    if isinstance(refs[0], ForwardingHostRef):
        return await resolve_ids_from_refs_or_raise(
            info, refs, list_field, name_field="host", load_ids=forwarding_hosts.load_ids_by_host
        )
    table = TRANSPORTS if isinstance(refs[0], TransportRef) else POLICIES
    load_ids = partial(routing_loaders.load_visible_ids_by_destination, table)
    return await resolve_ids_from_refs_or_raise(
        info, refs, list_field, name_field="destination", load_ids=load_ids
    )


async def load_transport_id(info: Info, ref: TransportRef, path: str) -> int:
    """Return the row ID of a reference. Raises as `resolve_routing_ids_or_raise`."""
    load_ids = partial(routing_loaders.load_visible_ids_by_destination, TRANSPORTS)
    return await resolve_id_from_ref_or_raise(
        info, ref, path, name_field="destination", load_ids=load_ids
    )
