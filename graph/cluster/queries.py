"""Queries of nodes and user affinities."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.cluster.inputs import ClusterNodeFilter, UserAffinityFilter, resolve_node_id_or_raise
from graph.cluster.types import ClusterConfig, ClusterNode, UserAffinity
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.fields import Info, query
from graph.types.object_access import OVERSEEN
from graph.types.references import (
    UserRef,
    load_visible_user,
    maybe_value,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.row_mapping import selected_columns
from models.store.columns import ColumnRow
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.cluster import affinities, loaders
from resolvers.cluster.affinities import AffinityConditions, UserAffinityOrder
from resolvers.cluster.loaders import ClusterNodeOrder, NodeConditions

READ_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.READ}
AFFINITY_LIST_COST = 50  # with a node in the filter more users are read than returned


def _node_conditions(node_filter: ClusterNodeFilter | None) -> NodeConditions:
    if not node_filter:
        return NodeConditions()
    return NodeConditions(
        value_or_none(node_filter.kind),
        value_or_none(node_filter.tag),
        value_or_none(node_filter.state),
    )


async def _affinity_conditions(
    info: Info, affinity_filter: UserAffinityFilter | None
) -> AffinityConditions:
    if not affinity_filter:
        return AffinityConditions()
    node, users = value_or_none(affinity_filter.node), value_or_none(affinity_filter.users)
    return AffinityConditions(
        await resolve_node_id_or_raise(info, node, "filter", "node") if node else None,
        user_selector_from_selection(users, path="filter") if users else None,
    )


def _node_as_input(row: ColumnRow) -> dict[str, Any]:
    return {
        "host": row.host,
        "port": row.port,
        "kind": str(row.kind),
        "tag": row.tag,
        "weight": row.weight,
        "state": str(row.state),
    }


@strawberry.type
class ClusterQuery:
    @query(
        "Returns the nodes of the cluster: the servers of the platform and the load balancers in "
        "front of them, in every state, also UNREACHABLE.",
        **READ_GUARD,
    )
    async def cluster_nodes(
        self,
        info: Info,
        filter: ClusterNodeFilter | None = UNSET,
        order_by: ClusterNodeOrder = ClusterNodeOrder.HOST_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ClusterNode]:
        conditions = _node_conditions(value_or_none(filter))
        ordering = ordering_name(f"cluster-nodes-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        return await connection_of_page(
            info,
            ClusterNode,
            await loaders.read_node_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, ClusterNode),
                order_by,
            ),
            lambda row: loaders.NODE_ORDERS[order_by].cursor_of_row(row, ordering),
            lambda: loaders.count_nodes(info.context, conditions),
        )

    @query(
        "Returns all nodes of the cluster, at most 1,000. The field `asInputs` has an input of "
        "`clusterNodeAdd` for each node. With these inputs, the same nodes can be added to "
        "another, empty database.",
        **READ_GUARD,
    )
    async def cluster_config(self, info: Info) -> ClusterConfig:
        rows = await loaders.load_all_nodes(info.context)
        inputs: Any = [_node_as_input(row) for row in rows]
        return ClusterConfig(
            nodes=[ClusterNode.from_row(row) for row in rows],
            as_inputs=inputs,
        )

    @query(
        "Returns which cluster node serves a user, and its pin. For a username or address that no "
        "user has, it returns the node that the hash of the name selects. Null if no user has the "
        "global ID.",
        access=OVERSEEN,
        **READ_GUARD,
    )
    async def user_affinity(self, info: Info, user: UserRef) -> UserAffinity | None:
        row = await load_visible_user(info, user)
        if row is not None:
            affinity = await info.context.load(affinities.load_affinities_by_user_id, row.id)
        elif user.id:
            affinity = None
        else:
            name = maybe_value(user.username) or maybe_value(user.address) or ""
            affinity = await affinities.affinity_of_unknown_name(info.context, name)
        return UserAffinity.from_row_or_none(affinity)

    @query(
        "Returns the users with the cluster nodes that serve them. With a node in the filter, the "
        "server reads fewer than 8,000 users to fill a page. A page can therefore have fewer "
        "users than requested, or none. The next page follows `pageInfo.endCursor` while "
        "`hasNextPage` is true. `totalCount` then counts the users of the node among the first "
        "100,000 by username. The list is empty if the state of that node is not UP.",
        access=OVERSEEN,
        cost=AFFINITY_LIST_COST,
        **READ_GUARD,
    )
    async def user_affinities(
        self,
        info: Info,
        filter: UserAffinityFilter | None = UNSET,
        order_by: UserAffinityOrder = UserAffinityOrder.USERNAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[UserAffinity]:
        conditions = await _affinity_conditions(info, value_or_none(filter))
        ordering = ordering_name(f"user-affinities-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        return await connection_of_page(
            info,
            UserAffinity,
            await affinities.read_affinity_page(info.context, conditions, requested_page, order_by),
            lambda row: affinities.AFFINITY_ORDERS[order_by].cursor_of_row(row, ordering),
            lambda: affinities.count_affinities(info.context, conditions),
        )
