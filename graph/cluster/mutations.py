"""Mutations of nodes and user affinities."""

from typing import Any

import strawberry
from strawberry import UNSET, Some

from graph.cluster.inputs import (
    ClusterNodeAddInput,
    ClusterNodeFlushInput,
    ClusterNodePatch,
    ClusterNodeRemoveInput,
    ClusterNodeUpdateInput,
    UserAffinitySetInput,
    resolve_node_id_or_raise,
    resolve_node_ids_or_raise,
)
from graph.cluster.types import SESSION_COST, ClusterNode, UserAffinity
from graph.types.errors import DeletePayload, MutationPayload, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import user_selector_from_selection, value_or_none
from models.users.roles import Role, Scope
from resolvers.cluster import affinities, create, delete, loaders, pins, update

WRITE_GUARD: dict[str, Any] = {"role": Role.ROOT, "scope": Scope.FULL}
ENDS_SESSIONS = AtomicExclusion("The end of sessions", forbids_idempotency_key=True)
UNRESPONSIVE_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer within a second. The sessions of such "
    "a process end if it answers again within ten minutes. Empty if all processes answered."
)
PENDING_DESCRIPTION = (
    "Number of sessions that this mutation ends and that are still open: they finish a message "
    "or an operation first, or their client is slow."
)


@strawberry.type(description="Payload of clusterNodeAdd.")
class ClusterNodePayload(MutationPayload):
    cluster_node: ClusterNode | None = attribute_field(
        "Added node. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of clusterNodeUpdate.")
class ClusterNodesPayload(MutationPayload):
    cluster_nodes: list[ClusterNode] = attribute_field(
        "Changed nodes, each once, in the order of the references. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type(description="Payload of clusterNodeFlush.")
class ClusterNodeFlushPayload(MutationPayload):
    redistributed_count: int = attribute_field(
        "Number of users whose pin to the node was removed. Their hash now decides which node "
        "serves them.",
        default=0,
    )
    terminated_count: int = attribute_field(
        "Number of sessions on the node that this mutation has ended. 0 without `force`.", default=0
    )
    pending_count: int = attribute_field(PENDING_DESCRIPTION, default=0)
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_DESCRIPTION, default_factory=list)


@strawberry.type(description="Payload of userAffinitySet.")
class UserAffinitySetPayload(MutationPayload):
    user_affinities: list[UserAffinity] = attribute_field(
        "Affinities of the users, in the order of the creation of the users. Empty if the "
        "mutation failed.",
        default_factory=list,
    )
    terminated_count: int = attribute_field(
        "Number of sessions of the users on other nodes that this mutation has ended. 0 if pins "
        "were removed.",
        default=0,
    )
    pending_count: int = attribute_field(PENDING_DESCRIPTION, default=0)
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_DESCRIPTION, default_factory=list)


def _changes_from_patch(patch: ClusterNodePatch) -> dict[str, Any]:
    """Return the values that a patch sets. Absent fields are left out."""
    changes = {name: value.value for name, value in vars(patch).items() if isinstance(value, Some)}
    if patch.tag is not UNSET:
        changes["tag"] = patch.tag
    return changes


async def _load_nodes(info: Info, node_ids: list[int]) -> list[ClusterNode]:
    rows = await info.context.load_many(loaders.load_nodes_by_id, list(dict.fromkeys(node_ids)))
    return [ClusterNode.from_row(row) for row in rows if row]


@strawberry.type
class ClusterMutation:
    @mutation(
        "Adds a node, which is a server or a load balancer, to the cluster. A running server "
        "registers its own node, so only load balancers and future servers must be added. They "
        "are UNREACHABLE until the server registers, or the load balancer is probed. If a server "
        "has already registered the node, the node gets the new values. An added node stays in "
        "the cluster when its server stops. Other nodes are deleted 7 days (by default) after "
        "their server stopped. CONFLICT if the node was already added, or if a load balancer is "
        "given for the node of a server. LIMIT_REACHED if the cluster has 1,000 nodes.",
        **WRITE_GUARD,
    )
    async def cluster_node_add(self, info: Info, input: ClusterNodeAddInput) -> ClusterNodePayload:
        values = {
            "host": input.host,
            "port": input.port,
            "kind": input.kind,
            "tag": value_or_none(input.tag),
            "weight": input.weight,
            "state": input.state,
        }
        (node,) = await _load_nodes(info, [await create.add_or_adopt_node(info.context, values)])
        return ClusterNodePayload(cluster_node=node)

    @mutation(
        "Changes state, weight and tag of the given cluster nodes: of all or none. A server "
        "applies a new state within a second. On a DRAINING or DOWN node, `/health/ready` returns "
        "503, new sessions are refused, and workers stop. On a DRAINING node, the server asks the "
        "open sessions to end one after another during `drainTime`. On a DOWN node, it asks all "
        "sessions to end immediately. A session ends when its running message or operation is "
        "finished. A node with the state UP accepts sessions again, and its workers run. "
        "LIMIT_REACHED for more than 1,000 nodes (by default).",
        **WRITE_GUARD,
    )
    async def cluster_node_update(
        self, info: Info, input: ClusterNodeUpdateInput
    ) -> ClusterNodesPayload:
        node_ids = await resolve_node_ids_or_raise(info, input.nodes, "nodes")
        await update.update_nodes(info.context, node_ids, _changes_from_patch(input.set))
        return ClusterNodesPayload(cluster_nodes=await _load_nodes(info, node_ids))

    @mutation(
        "Removes nodes from the cluster, with the pins of users to them, all or none. No session "
        "ends. A server that runs registers its node again within a second, with the default "
        "weight and the state UP. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def cluster_node_remove(self, info: Info, input: ClusterNodeRemoveInput) -> DeletePayload:
        node_ids = await resolve_node_ids_or_raise(info, input.nodes, "nodes")
        deleted_ids = await delete.remove_nodes_with_pins(info.context, node_ids)
        return DeletePayload.of_keys("ClusterNode", deleted_ids)

    @mutation(
        "Removes the pins of all users to one cluster node (`node` of the input). The hash of the "
        "username then decides again which node serves each of these users. With `force`, "
        "sessions on this node also end of every user whom another node now serves. Their "
        "security log records it. Without `force`, all sessions continue.",
        atomic_exclusion=ENDS_SESSIONS,
        cost=SESSION_COST,
        **WRITE_GUARD,
    )
    async def cluster_node_flush(
        self, info: Info, input: ClusterNodeFlushInput
    ) -> ClusterNodeFlushPayload:
        node_id = await resolve_node_id_or_raise(info, input.node, "node")
        flushed = await pins.remove_pins_of_node(info.context, node_id, ends_sessions=input.force)
        return ClusterNodeFlushPayload(
            redistributed_count=flushed.redistributed_count,
            terminated_count=flushed.sessions.terminated_count,
            pending_count=flushed.sessions.pending_count,
            unresponsive_nodes=list(flushed.sessions.unresponsive_nodes),
        )

    @mutation(
        "Pins users to a cluster node, and ends their sessions on other nodes, which their "
        "security log records. A session first finishes its running message or operation. Access "
        "tokens stay valid. Without `node`, it removes the pins of the users, and ends no "
        "session. CONFLICT if the node is a load balancer, or if its state is not UP. "
        "LIMIT_REACHED for more than 1,000 users (by default).",
        atomic_exclusion=ENDS_SESSIONS,
        cost=SESSION_COST,
        **WRITE_GUARD,
    )
    async def user_affinity_set(
        self, info: Info, input: UserAffinitySetInput
    ) -> UserAffinitySetPayload:
        node = value_or_none(input.node)
        pinned = await pins.set_pins_and_end_sessions(
            info.context,
            user_selector_from_selection(input.users),
            await resolve_node_id_or_raise(info, node, "node") if node else None,
            value_or_none(input.duration),
        )
        rows = await info.context.load_many(
            affinities.load_affinities_by_user_id, list(pinned.user_ids)
        )
        return UserAffinitySetPayload(
            user_affinities=[UserAffinity.from_row(row) for row in rows if row],
            terminated_count=pinned.sessions.terminated_count,
            pending_count=pinned.sessions.pending_count,
            unresponsive_nodes=list(pinned.sessions.unresponsive_nodes),
        )
