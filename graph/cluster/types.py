"""GraphQL types of nodes and user affinities."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry.scalars import JSON

from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.object_views import DerivedField, View
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
)
from models.cluster.nodes import (
    AdministrativeNodeState,
    ClusterNodeState,
    NodeKind,
    NodeSyncState,
)
from models.users.roles import Role
from resolvers.cluster import affinities, loaders, session_counts
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

USER_COUNT_COST = 1000  # the node of each user is computed
SESSION_COST = 50  # all processes answer
ADMIN_GUARD: dict[str, Any] = {"role": Role.ADMIN}


def _sync_state(
    kind: str, change_number: int, applied_change_number: int, unreachable_at: datetime | None
) -> NodeSyncState | None:
    if kind == NodeKind.FRONT:
        return None
    is_synced = change_number == applied_change_number and unreachable_at is None
    return NodeSyncState.SYNCED if is_synced else NodeSyncState.CATCHING_UP


def _drain_end(state: str, drain_ends_at: datetime | None) -> datetime | None:
    return drain_ends_at if state == AdministrativeNodeState.DRAINING else None


@strawberry.type(
    description="Server of the platform, or load balancer in front of the servers.",
    directives=[Auth(**ADMIN_GUARD)],
)
class ClusterNode(NodeView):
    host: str = attribute_field("Host name, in lower case, or IP address of the node.")
    port: int = attribute_field(
        "TCP port of HTTP of a BACKEND; of a FRONT node the port that is probed."
    )
    kind: NodeKind = attribute_field("Kind of the node: a server or a load balancer.")
    tag: str | None = attribute_field(
        "Label of the node, by which lists can be filtered. It has no effect on which node serves "
        "a user. Null: none."
    )
    weight: int = attribute_field(
        "Share of users that a BACKEND node serves, in proportion to the weights of the other "
        "nodes, from 1 to 10,000. Default: 100. It has no effect on a FRONT node."
    )
    state: ClusterNodeState = attribute_field(
        "State of the node: `administrativeState`, or UNREACHABLE, which has precedence."
    )
    administrative_state: AdministrativeNodeState = attribute_field(
        "State that `clusterNodeUpdate` or `clusterNodeAdd` has set. It is kept if the server "
        "restarts. Default: UP."
    )
    state_changed_at: datetime = attribute_field(
        "Time of the last change of `administrativeState`."
    )
    drain_ends_at: datetime | None = attribute_field(
        "Time until which a DRAINING node has asked all its sessions to end. Null: the node is not "
        "DRAINING, or was added in that state."
    )
    sync_state: NodeSyncState | None = attribute_field(
        "SYNCED if the node is reachable and its server has applied the last change of the node. "
        "Null: the node is a load balancer."
    )
    version: str | None = attribute_field(
        "Version of the server of the node, also if it has stopped. Null: no server has registered "
        "as this node."
    )
    process_count: int = attribute_field(
        "Number of processes of the server at its last heartbeat, also if the server has stopped "
        "since. It is 0 if no server has registered as this node."
    )
    smtp_port: int | None = attribute_field(
        "TCP port on which the server receives mail by SMTP. Null: it has no such listener."
    )
    submission_port: int | None = attribute_field(
        "TCP port of message submission with STARTTLS (RFC 6409). Null: the server has no such "
        "listener."
    )
    last_heartbeat_at: datetime | None = attribute_field(
        "Time of the last heartbeat of the server, which it writes every second, or of the last "
        "successful probe of a load balancer. Null: there was none."
    )
    unreachable_since: datetime | None = attribute_field(
        "Time since when the node is UNREACHABLE. Null: it is reachable."
    )
    last_failure_at: datetime | None = attribute_field(
        "Time of the last failure of the node: a missing heartbeat, or a failed probe. It stays "
        "after the node is reachable again. Null: there was none."
    )
    last_failure: str | None = attribute_field(
        "Reason of the last failure of the node, in English. It stays after the node is reachable "
        "again. Null: there was none."
    )
    permanent: bool = attribute_field(
        "True if `clusterNodeAdd` added the node. It is then kept without a server. False: the "
        "node is deleted 7 days (by default) after its server has stopped."
    )
    created_at: datetime = attribute_field("Time when the node was added, or first registered.")

    load_batch = staticmethod(loaders.load_nodes_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ClusterNode"),
        "kind": DerivedField(("kind",), NodeKind),
        "state": DerivedField(("state", "unreachable_at"), loaders.shown_state),
        "administrative_state": DerivedField(("state",), AdministrativeNodeState),
        "drain_ends_at": DerivedField(("state", "drain_ends_at"), _drain_end),
        "sync_state": DerivedField(
            ("kind", "change_number", "applied_change_number", "unreachable_at"), _sync_state
        ),
        "permanent": DerivedField(("is_added",), bool),
        "unreachable_since": DerivedField(("unreachable_at",), lambda since: since),
    }

    @field("True if the server of this node answers this request.", "id")
    async def local(self, info: Info) -> bool:
        return bool(self.row.id == info.context.environment.own_node.node_id)

    @field(
        "Number of users that the node serves, by pins and by hash. 0 if its state is not UP, or "
        "if it is a load balancer. Null: the platform has more than 100,000 users.",
        "id",
        cost=USER_COUNT_COST,
    )
    async def user_count(self, info: Info) -> int | None:
        return await info.context.load(affinities.count_users_by_node, self.row.id)

    @field(
        "Number of open sessions on the node. 0 for a load balancer. Null: a process of the node "
        "did not answer within a second, for example since the server has stopped.",
        "server",
        "process_count",
        cost=SESSION_COST,
    )
    async def session_count(self, info: Info) -> int | None:
        key = session_counts.ServerKey(self.row.server, self.row.process_count)
        return await info.context.load(session_counts.count_sessions_by_server, key)


@strawberry.type(
    description="Nodes of a user: the one that serves the user now, and why.",
    directives=[Auth(**ADMIN_GUARD)],
)
class UserAffinity(View):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whom the other fields are about. Null: the requested username or "
        "address belongs to no user.",
    )
    hash: str = attribute_field(
        "Hash of the username, or of the requested name, 16 hexadecimal digits. It decides on "
        "`hashedNode`."
    )
    node: ClusterNode | None = link(
        "node_id",
        loaders.load_nodes_by_id,
        ClusterNode.from_row_or_none,
        description="Node that serves the user: `pinnedNode` if that is UP, else `hashedNode`. "
        "Null: no BACKEND node is UP.",
    )
    hashed_node: ClusterNode | None = link(
        "hashed_node_id",
        loaders.load_nodes_by_id,
        ClusterNode.from_row_or_none,
        description=(
            "Node of the user by weighted rendezvous hashing among the BACKEND nodes that are UP. "
            "Null: no BACKEND node is UP."
        ),
    )
    pinned_node: ClusterNode | None = link(
        "pinned_node_id",
        loaders.load_nodes_by_id,
        ClusterNode.from_row_or_none,
        description=(
            "Node that `userAffinitySet` has pinned the user to, in any state. Null: the user is "
            "not pinned, or the pin has ended."
        ),
    )
    pinned: bool = attribute_field(
        "True if `node` is `pinnedNode`. False: the user is not pinned, or that node is not UP."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the pin of the user ends. Null: the user is not pinned, or the pin has no end."
    )

    @field(
        "Nodes on which the user has sessions now, as far as their processes answer within a "
        "second. At most 1,000. Empty for a name without a user.",
        "user_id",
        cost=SESSION_COST,
    )
    async def session_nodes(self, info: Info) -> list[ClusterNode]:
        if self.row.user_id is None:
            return []
        rows = await info.context.load(session_counts.load_session_nodes, self.row.user_id)
        return [ClusterNode.from_row(row) for row in rows]


@strawberry.type(
    description="Nodes of the platform, in a form that rebuilds them.",
    directives=[Auth(**ADMIN_GUARD)],
)
class ClusterConfig:
    nodes: list[ClusterNode] = attribute_field(
        "All nodes, at most 1,000, in the order of host and port."
    )
    as_inputs: JSON = attribute_field(
        "List with the input of `clusterNodeAdd` for each node. On an empty database, these "
        "mutations result in the same nodes."
    )
