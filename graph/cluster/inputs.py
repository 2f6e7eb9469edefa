"""Inputs of nodes and user affinities, and references to nodes."""

from collections.abc import Sequence

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.references import UserSelection
from graph.types.scalars import Duration
from models.cluster.nodes import (
    DEFAULT_WEIGHT,
    AdministrativeNodeState,
    ClusterNodeState,
    NodeKind,
)
from models.errors import NotFound, require_within_limit
from resolvers.cluster.loaders import HostAndOptionalPort, require_unambiguous_ids_by_address
from resolvers.cluster.validation import normalized_host

DEFAULT_PORT = 8025
HOST_DESCRIPTION = "Host name or IP address of the node. Case is ignored."
WEIGHT_DESCRIPTION = (
    "Share of users that a BACKEND node serves, in proportion to the weights of the other nodes, "
    "from 1 to 10,000. It has no effect on a FRONT node."
)
TAG_DESCRIPTION = (
    "Label that groups nodes, at most 64 printable characters; more are an error. Spaces at both "
    "ends are removed."
)


@strawberry.input(description="Host and port of a node.")
class ClusterNodeAddressInput:
    host: str = attribute_field(HOST_DESCRIPTION)
    port: int = attribute_field("TCP port of the node, from 1 to 65,535.")


@strawberry.input(one_of=True, description="Reference to one node.")
class ClusterNodeRef(ObjectRef):
    host: strawberry.Maybe[str] = attribute_field(
        "Host name or IP address of the node (case is ignored). If several nodes have it, the "
        "error is VALIDATION."
    )
    address: strawberry.Maybe[ClusterNodeAddressInput] = attribute_field(
        "Host and port of the node."
    )


@strawberry.input(description="Conditions on nodes. All must hold.")
class ClusterNodeFilter(ConditionsInput):
    kind: NodeKind | None = attribute_field("Returns only nodes of this kind.", default=UNSET)
    tag: str | None = attribute_field(
        "Returns only nodes with exactly this tag (case matters).", default=UNSET
    )
    state: ClusterNodeState | None = attribute_field(
        "Returns only nodes in this state. A node that is UNREACHABLE is returned for no other "
        "state.",
        default=UNSET,
    )


@strawberry.input(description="Conditions on user affinities. All must hold.")
class UserAffinityFilter(ConditionsInput):
    node: ClusterNodeRef | None = attribute_field(
        "Returns only users that this node serves, by pin or by hash. A node whose state is not "
        "UP serves no user. A page can have fewer users than requested, or none, while "
        "`pageInfo.hasNextPage` is true.",
        default=UNSET,
    )
    users: UserSelection | None = attribute_field(
        "Returns only these users, which `node` further restricts.", default=UNSET
    )


@strawberry.input(description="Input of clusterNodeAdd.")
class ClusterNodeAddInput(Options):
    host: str = attribute_field(HOST_DESCRIPTION)
    port: int = attribute_field(
        "TCP port of HTTP of a BACKEND; of a FRONT node the port that is probed. From 1 to 65,535.",
        default=DEFAULT_PORT,
    )
    kind: NodeKind = attribute_field(
        "Kind of the node: a server or a load balancer. Default: BACKEND.", default=NodeKind.BACKEND
    )
    tag: str | None = attribute_field(f"{TAG_DESCRIPTION} Default: none.", default=UNSET)
    weight: int = attribute_field(WEIGHT_DESCRIPTION, default=DEFAULT_WEIGHT)
    state: AdministrativeNodeState = attribute_field(
        "Administrative state of the node. A node that is added as DRAINING ends its sessions at "
        "once, without a drain time.",
        default=AdministrativeNodeState.UP,
    )


@strawberry.input(
    description="New values of nodes. An absent field leaves the value. At least one field must be "
    "given."
)
class ClusterNodePatch:
    state: strawberry.Maybe[AdministrativeNodeState] = attribute_field(
        "Administrative state of the nodes. DRAINING again begins the drain time again."
    )
    weight: strawberry.Maybe[int] = attribute_field(WEIGHT_DESCRIPTION)
    tag: str | None = attribute_field(f"{TAG_DESCRIPTION} Null: none.", default=UNSET)
    drain_time: strawberry.Maybe[Duration] = attribute_field(
        "Time over which the nodes end their sessions, from 0 seconds to 1 day. It requires "
        "`state: DRAINING` in the same input, else the error is VALIDATION. Default: 5 minutes."
    )


@strawberry.input(description="Input of clusterNodeUpdate.")
class ClusterNodeUpdateInput(Options):
    nodes: list[ClusterNodeRef] = attribute_field(
        "Nodes to change, 1 to 1,000 by default. A node that is named twice is changed once."
    )
    set: ClusterNodePatch = attribute_field(
        "New values, the same for all nodes. At least one value is required."
    )


@strawberry.input(description="Input of clusterNodeRemove.")
class ClusterNodeRemoveInput(Options):
    nodes: list[ClusterNodeRef] = attribute_field("Nodes to remove, 1 to 1,000 by default.")


@strawberry.input(description="Input of clusterNodeFlush.")
class ClusterNodeFlushInput(Options):
    node: ClusterNodeRef = attribute_field("Node whose users lose their pins.")
    force: bool = attribute_field(
        "True also ends the sessions on this node of users that another node serves. False: all "
        "sessions continue.",
        default=False,
    )


@strawberry.input(description="Input of userAffinitySet.")
class UserAffinitySetInput(Options):
    users: UserSelection = attribute_field(
        "Users to pin, or whose pins are removed. A new pin replaces the former one."
    )
    node: ClusterNodeRef | None = attribute_field(
        "Node that the users are pinned to: it serves them from now on. It must be a BACKEND node "
        "with the state UP, else CONFLICT. Default: null, which removes the pins of the users.",
        default=UNSET,
    )
    duration: Duration | None = attribute_field(
        "Time after which the pins end, from 1 minute to 3,650 days. Without `node` it is the "
        "error VALIDATION. Default: null, no end.",
        default=UNSET,
    )


async def resolve_node_id_or_raise(info: Info, ref: ClusterNodeRef, *path: str) -> int:
    """Return the row ID of a reference to a node. Raises as `resolve_node_ids_or_raise`."""
    (node_id,) = await _resolve_node_ids_with_paths_or_raise(info, [(ref, path)], path)
    return node_id


async def resolve_node_ids_or_raise(
    info: Info, refs: Sequence[ClusterNodeRef], path: str
) -> list[int]:
    """Return the row IDs of references to nodes, in their order.

    Raises InvalidInput if an ID or host is malformed or a host has several nodes, NotFound if no
    node has the host and port, and LimitReached for too many references.
    """
    max_count = info.context.environment.options.bulk_max_items
    text = f"At most {max_count} objects can be selected at once."
    require_within_limit(len(refs), max_count, text, path=[path])
    pairs = [(ref, (path, str(index))) for index, ref in enumerate(refs)]
    return await _resolve_node_ids_with_paths_or_raise(info, pairs, (path,))


async def _resolve_node_ids_with_paths_or_raise(
    info: Info,
    refs_with_paths: Sequence[tuple[ClusterNodeRef, Sequence[str]]],
    list_path: Sequence[str],
) -> list[int]:
    addresses = [_address_from_ref(ref, path) for ref, path in refs_with_paths]
    given = list(dict.fromkeys(address for address in addresses if address))
    ids = await require_unambiguous_ids_by_address(info.context, given, list_path) if given else {}
    result: list[int] = []
    for address, (ref, path) in zip(addresses, refs_with_paths, strict=True):
        if address is None:
            result.append(id_from_ref(ref, *path))
        elif address in ids:
            result.append(ids[address])
        else:
            raise NotFound(address.host, path=path, noun="Cluster node")
    return result


def _address_from_ref(ref: ClusterNodeRef, path: Sequence[str]) -> HostAndOptionalPort | None:
    """Return the host and port of a reference; None if it is an ID."""
    if ref.host:
        return HostAndOptionalPort(normalized_host(ref.host.value, *path, "host"), None)
    if ref.address:
        address = ref.address.value
        host = normalized_host(address.host, *path, "address", "host")
        return HostAndOptionalPort(host, address.port)
    return None
