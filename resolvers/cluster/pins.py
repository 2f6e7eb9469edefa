"""Pins of users to nodes, and the removal of all pins to a node. For ROOT."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.cluster.nodes import AdministrativeNodeState, ClusterNode, NodeKind, UserAffinity
from models.cluster.own_node import address_text
from models.errors import Conflict, InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.cluster.affinities import is_pin_in_force, load_affinities_by_user_id
from resolvers.cluster.changes import require_nodes
from resolvers.cluster.loaders import WRITE_RULE
from resolvers.cluster.session_requests import (
    EndedSessions,
    ask_processes_for_node_sessions,
    end_sessions_and_write_security_log,
)
from resolvers.cluster.validation import validate_pin_time
from resolvers.context import Context
from resolvers.users.selection import UserSelector, require_selected_users

NO_SESSIONS = EndedSessions(0, 0, ())


@dataclass(frozen=True, slots=True)
class PinnedUsers:
    """The users whose pin was set or removed, and the sessions that ended on other nodes."""

    user_ids: Sequence[int]
    sessions: EndedSessions


@dataclass(frozen=True, slots=True)
class FlushedNode:
    """The number of users whose pin was removed, and the sessions that ended on the node."""

    redistributed_count: int
    sessions: EndedSessions


async def set_pins_and_end_sessions(
    ctx: Context, users: UserSelector, node_id: int | None, duration: timedelta | None
) -> PinnedUsers:
    """Pin users to a node, or remove their pins for None.

    Then their sessions on other nodes end, so that load balancers connect them to the node. Must
    not be called in a transaction that has changed something. Raises Conflict if the node is not UP
    or no BACKEND, NotFound, InvalidInput, and the errors of `require_selected_users`.
    """
    ctx.viewer.require(WRITE_RULE)
    validate_pin_time(duration)
    if duration is not None and node_id is None:
        text = "`duration` requires `node`."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["duration"])
    rows = await require_selected_users(ctx, users)
    user_ids = [row.id for row in rows]
    server: str | None = None
    new_node: str | None = None
    async with ctx.write_session(PLATFORM) as session:
        connection = await session.connection()
        if node_id is not None:
            node = await _require_usable_node(ctx, node_id)
            server, new_node = node.server, address_text(node.host, node.port)
        former = await connection.execute(
            select(col(UserAffinity.user_id), col(ClusterNode.host), col(ClusterNode.port))
            .join(ClusterNode, col(ClusterNode.id) == col(UserAffinity.node_id))
            .where(col(UserAffinity.user_id).in_(user_ids))
        )
        former_nodes = {row.user_id: address_text(row.host, row.port) for row in former}
        await connection.execute(
            delete(UserAffinity).where(col(UserAffinity.user_id).in_(user_ids))
        )
        now = ctx.environment.now()
        if node_id is not None and user_ids:
            values = {
                "node_id": node_id,
                "created_at": now,
                "expires_at": None if duration is None else now + duration,
            }
            await connection.execute(
                insert(UserAffinity), [{"user_id": user_id, **values} for user_id in user_ids]
            )
        if user_ids:
            is_pinned = node_id is not None
            event_type = (
                EventType.CLUSTER_AFFINITY_CREATED
                if is_pinned
                else EventType.CLUSTER_AFFINITY_DELETED
            )
            await ctx.record_change(session, PLATFORM, event_type, user_ids)
        entries = [
            NewAuditLogEntry(
                "userAffinitySet",
                "User",
                row.id,
                domain_id=row.domain_id,
                before={"node": former_nodes.get(row.id)},
                after={"node": new_node},
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    if node_id is None:
        return PinnedUsers(user_ids, NO_SESSIONS)
    sessions = await end_sessions_and_write_security_log(ctx, user_ids, except_server=server)
    return PinnedUsers(user_ids, sessions)


async def _require_usable_node(ctx: Context, node_id: int) -> ColumnRow:
    """Return the node. Raises NotFound, and Conflict unless it is a BACKEND, UP and reachable."""
    (row,) = await require_nodes(ctx, [node_id])
    if row.kind != NodeKind.BACKEND:
        raise Conflict("The node is a load balancer.", path=["node"])
    if row.state != AdministrativeNodeState.UP:
        raise Conflict(f"The node is {row.state}.", path=["node"])
    if row.unreachable_at is not None:
        raise Conflict("The node is UNREACHABLE.", path=["node"])
    return row


async def remove_pins_of_node(ctx: Context, node_id: int, *, ends_sessions: bool) -> FlushedNode:
    """Remove the pins of all users to a node, who then belong to the node by their hash.

    With `ends_sessions`, sessions on the node end of users who belong to another node. Must not be
    called in a transaction that has changed something. Raises NotFound.
    """
    ctx.viewer.require(WRITE_RULE)
    async with ctx.write_session(PLATFORM) as session:
        (row,) = await require_nodes(ctx, [node_id])
        user_ids = await delete_pins_to_nodes(ctx, session, [node_id])
        entry = NewAuditLogEntry(
            "clusterNodeFlush",
            "ClusterNode",
            node_id,
            before={"pinnedUserCount": len(user_ids)},
            after={"pinnedUserCount": 0, "force": ends_sessions},
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    sessions = NO_SESSIONS
    if ends_sessions and row.server is not None and not ctx.is_dry_run:
        sessions = await _end_sessions_of_other_users(ctx, node_id, row.server)
    return FlushedNode(len(user_ids), sessions)


async def delete_pins_to_nodes(
    ctx: Context, session: AsyncSession, node_ids: Collection[int]
) -> list[int]:
    """Delete the pins to nodes, and return the ids of the users whose pin had not ended."""
    connection = await session.connection()
    is_to_nodes = col(UserAffinity.node_id).in_(node_ids)
    found = await connection.execute(
        select(col(UserAffinity.user_id)).where(is_to_nodes, is_pin_in_force(ctx))
    )
    user_ids = list(found.scalars())
    await connection.execute(delete(UserAffinity).where(is_to_nodes))
    if user_ids:
        await ctx.record_change(session, PLATFORM, EventType.CLUSTER_AFFINITY_DELETED, user_ids)
    return user_ids


async def _end_sessions_of_other_users(ctx: Context, node_id: int, server: str) -> EndedSessions:
    """End the sessions on a server of the users who belong to another node."""
    open_sessions = await ask_processes_for_node_sessions(ctx.environment, None, server)
    affinities = await load_affinities_by_user_id(ctx, sorted(open_sessions.user_ids[server]))
    user_ids = [row.id for row in affinities if row and row.node_id not in (node_id, None)]
    return await end_sessions_and_write_security_log(ctx, user_ids, only_server=server)
