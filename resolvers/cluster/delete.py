"""Removal of nodes. For ROOT."""

from collections.abc import Sequence

from sqlalchemy import delete
from sqlmodel import col

from models.cluster.nodes import ClusterNode
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.cluster.changes import node_log_values, require_nodes
from resolvers.cluster.loaders import WRITE_RULE
from resolvers.cluster.pins import delete_pins_to_nodes
from resolvers.context import Context


async def remove_nodes_with_pins(ctx: Context, node_ids: Sequence[int]) -> list[int]:
    """Remove nodes with the pins of users to them, all or none; return their ids.

    A server that runs registers its node again within a second, with initial values. Raises
    NotFound, and InvalidInput if none is given.
    """
    ctx.viewer.require(WRITE_RULE)
    async with ctx.write_session(PLATFORM) as session:
        rows = await require_nodes(ctx, node_ids)
        ids = [row.id for row in rows]
        await delete_pins_to_nodes(ctx, session, ids)
        statement = delete(ClusterNode).where(col(ClusterNode.id).in_(ids))
        await (await session.connection()).execute(statement)
        await ctx.record_change(session, PLATFORM, EventType.CLUSTER_NODE_DELETED, ids)
        entries = [
            NewAuditLogEntry(
                "clusterNodeRemove", "ClusterNode", row.id, before=node_log_values(row)
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return ids
