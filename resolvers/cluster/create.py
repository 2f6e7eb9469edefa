"""Addition of nodes by an administrator. For ROOT."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlmodel import col

from models.cluster.nodes import ClusterNode, NodeKind
from models.errors import Conflict, LimitReached
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.cluster.changes import node_log_values, require_nodes
from resolvers.cluster.loaders import MAX_NODES, WRITE_RULE, select_nodes
from resolvers.cluster.validation import normalized_node_values
from resolvers.context import Context


async def add_or_adopt_node(ctx: Context, values: Mapping[str, Any]) -> int:
    """Add a node and return its id.

    The values are host, port, kind, tag, weight and state. A node that its server has registered
    gets them, and is kept from now on. Another node is unreachable until its server registers, or
    its first probe succeeds. Raises InvalidInput, LimitReached, and Conflict if an administrator
    has already added the node, or if a server runs as the node of a load balancer.
    """
    ctx.viewer.require(WRITE_RULE)
    normalized = normalized_node_values(values)
    async with ctx.write_session(PLATFORM) as session:
        connection = await session.connection()
        former = await _load_registered_node_or_raise_conflict(ctx, normalized)
        node_id = ctx.environment.new_id() if former is None else int(former.id)
        now = ctx.environment.now()
        changes = {**normalized, "is_added": True, "state_changed_at": now}
        if former is None:
            await _require_room(ctx)
            changes |= {
                "id": node_id,
                "unreachable_at": now,
                "ip_addresses": _literal_ip_addresses_of_host(normalized["host"]),
                "created_at": now,
            }
            await connection.execute(insert(ClusterNode), changes)
        else:
            if former.state == normalized["state"]:
                del changes["state_changed_at"]
            changes |= {
                "change_number": former.change_number + 1,
                "drain_seconds": 0,
                "drain_ends_at": None,
            }
            statement = update(ClusterNode).where(col(ClusterNode.id) == node_id)
            await connection.execute(statement.values(**changes))
        (row,) = await require_nodes(ctx, [node_id])
        is_new = former is None
        event_type = EventType.CLUSTER_NODE_CREATED if is_new else EventType.CLUSTER_NODE_UPDATED
        await ctx.record_change(session, PLATFORM, event_type, [node_id])
        entry = NewAuditLogEntry(
            "clusterNodeAdd", "ClusterNode", node_id, after=node_log_values(row)
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return node_id


async def _load_registered_node_or_raise_conflict(
    ctx: Context, values: Mapping[str, Any]
) -> ColumnRow | None:
    """Return the node that a server has registered with this name; None without one.

    Raises Conflict if it was added before, or if it would become a load balancer.
    """
    statement = select_nodes().where(
        col(ClusterNode.host) == values["host"], col(ClusterNode.port) == values["port"]
    )
    rows = await ctx.read(statement)
    if not rows:
        return None
    if rows[0].is_added:
        raise Conflict("The node was already added.", path=["host"])
    if values["kind"] is NodeKind.FRONT:
        raise Conflict("A server has registered this node as a BACKEND.", path=["kind"])
    row: ColumnRow = rows[0]
    return row


async def _require_room(ctx: Context) -> None:
    """Raise LimitReached if the cluster has its maximum of nodes."""
    (row,) = await ctx.read(select(func.count()).select_from(ClusterNode))
    if row[0] >= MAX_NODES:
        text = f"At most {MAX_NODES:,} nodes are allowed."
        raise LimitReached(text, limit=MAX_NODES, used=row[0])


def _literal_ip_addresses_of_host(host: str) -> list[str]:
    """Return the host if it is an IP address, else no address.

    There is no DNS lookup: the first probe resolves names.
    """
    try:
        return [str(ip_address(host))]
    except ValueError:
        return []
