"""The node that a load balancer connects a user to. For an ADMIN."""

import asyncio
import time
from dataclasses import dataclass
from ipaddress import ip_address
from weakref import WeakKeyDictionary

from sqlmodel import col

from mail.network.outbound_http import resolve_by_system
from mail.recipients.address_resolution import find_sign_in_user_id
from models.errors import ServiceUnavailable
from models.store.columns import ColumnRow
from models.store.database import Database
from models.users.tables import User
from resolvers.cluster.affinities import (
    MAX_NAME_LENGTH,
    NodeTable,
    load_node_table,
    select_users_with_pins,
)
from resolvers.cluster.loaders import READ_RULE
from resolvers.context import Context

RESOLVE_TIMEOUT_SECONDS = 2.0
MAX_NODES_AGE = 0.5  # seconds for which the nodes are used again: load balancers ask often


@dataclass(frozen=True, slots=True)
class UserRoute:
    """The node that serves a user, and whether a pin decides it."""

    node: ColumnRow
    is_pinned: bool


async def find_user_route(ctx: Context, name: str) -> UserRoute:
    """Return the node of a user by username or address.

    A name that no user has is mapped by its hash, so a load balancer does not show which names
    exist. Raises Forbidden unless the viewer is an ADMIN, and ServiceUnavailable if no node is UP.
    """
    ctx.viewer.require(READ_RULE)
    name = name.strip()[:MAX_NAME_LENGTH]
    table = await _load_recent_node_table(ctx)
    user_id = await find_sign_in_user_id(ctx.environment, name) if name else None
    affinity = table.affinity_of_unknown_name(name)
    if user_id is not None:
        rows = await ctx.read(select_users_with_pins(ctx).where(col(User.id) == user_id))
        affinity = table.affinity_of_row(rows[0]) if rows else affinity
    return UserRoute(_require_node(table, affinity.node_id), affinity.pinned)


@dataclass(frozen=True, slots=True)
class _RecentNodes:
    """The nodes, and when they were read, in seconds of the monotonic clock."""

    table: NodeTable
    read_at: float


_recent_nodes: WeakKeyDictionary[Database, _RecentNodes] = WeakKeyDictionary()


async def _load_recent_node_table(ctx: Context) -> NodeTable:
    """Return the nodes as they were at most MAX_NODES_AGE ago."""
    read_at, database = time.monotonic(), ctx.environment.database
    recent = _recent_nodes.get(database)
    if recent is None or read_at - recent.read_at >= MAX_NODES_AGE:
        recent = _recent_nodes[database] = _RecentNodes(await load_node_table(ctx), read_at)
    return recent.table


def _require_node(table: NodeTable, node_id: int | None) -> ColumnRow:
    if node_id is None:
        raise ServiceUnavailable("No node is UP.", component="cluster")
    return table.rows_by_id[node_id]


async def resolve_node_host(host: str) -> str:
    """Return an IP address of the host of a node. Raises ServiceUnavailable if it has none."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_SECONDS):
            addresses = await resolve_by_system(host, 0)
    except OSError as problem:  # also TimeoutError
        raise ServiceUnavailable(
            f"The address of the node {host} could not be found.", component="cluster"
        ) from problem
    if not addresses:
        raise ServiceUnavailable(f"The node {host} has no address.", component="cluster")
    ipv4 = [text for text in addresses if ":" not in text]
    return str((ipv4 or list(addresses))[0])
