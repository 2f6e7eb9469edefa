"""Change of the state, weight and tag of nodes. For ROOT."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.cluster.nodes import AdministrativeNodeState, ClusterNode
from models.errors import InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.cluster.changes import changed_node_log_entry, require_nodes
from resolvers.cluster.loaders import WRITE_RULE
from resolvers.cluster.validation import normalized_node_values
from resolvers.context import Context

DEFAULT_DRAIN_TIME = timedelta(minutes=5)


async def update_nodes(ctx: Context, node_ids: Sequence[int], changes: Mapping[str, Any]) -> None:
    """Change nodes, all or none. Their servers apply a new state within a second.

    The changes are any of state, weight, tag and drain_time; absent values stay. DRAINING begins
    the drain time again. Raises NotFound and InvalidInput.
    """
    ctx.viewer.require(WRITE_RULE)
    values = normalized_node_values(changes, "set")
    drain_time = _pop_validated_drain_time(values)
    if not values:
        text = "At least one field is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["set"])
    async with ctx.write_session(PLATFORM) as session:
        before, connection = await require_nodes(ctx, node_ids), await session.connection()
        now = ctx.environment.now()
        for row in before:
            new_values = {**values, "change_number": row.change_number + 1}
            if "state" in values:
                is_draining = values["state"] is AdministrativeNodeState.DRAINING
                seconds = int(drain_time.total_seconds()) if is_draining else 0
                new_values["drain_seconds"] = seconds
                new_values["drain_ends_at"] = now + drain_time if is_draining else None
                if row.state != values["state"]:
                    new_values["state_changed_at"] = now
            statement = update(ClusterNode).where(col(ClusterNode.id) == row.id)
            await connection.execute(statement.values(**new_values))
        after = await require_nodes(ctx, [row.id for row in before])
        ids = [row.id for row in before]
        await ctx.record_change(session, PLATFORM, EventType.CLUSTER_NODE_UPDATED, ids)
        entries = [
            changed_node_log_entry("clusterNodeUpdate", *pair)
            for pair in zip(before, after, strict=True)
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


def _pop_validated_drain_time(values: dict[str, Any]) -> timedelta:
    """Remove the drain time from the values and return it.

    Raises InvalidInput if it is given without the state DRAINING.
    """
    drain_time: timedelta | None = values.pop("drain_time", None)
    if drain_time is not None and values.get("state") is not AdministrativeNodeState.DRAINING:
        raise InvalidInput(
            "`drainTime` requires the state DRAINING.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["set", "drainTime"],
        )
    return DEFAULT_DRAIN_TIME if drain_time is None else drain_time
