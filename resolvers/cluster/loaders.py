"""Reading of the nodes of the platform. For an ADMIN."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.cluster.nodes import (
    AdministrativeNodeState,
    ClusterNode,
    ClusterNodeState,
    NodeKind,
)
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.viewer import GuardRule

READ_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)
WRITE_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)
MAX_NODES = 1000


class ClusterNodeOrder(StrEnum):
    """The order of nodes; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    HOST_ASC = "HOST_ASC"
    HOST_DESC = "HOST_DESC"
    STATE_CHANGED_AT_ASC = "STATE_CHANGED_AT_ASC"
    STATE_CHANGED_AT_DESC = "STATE_CHANGED_AT_DESC"


NODE_ORDERS = list_orders(
    ClusterNodeOrder,
    {
        "CREATED_AT": SortColumn("created_at", datetime),
        "HOST": SortColumn("host", str),
        "STATE_CHANGED_AT": SortColumn("state_changed_at", datetime),
    },
)


@dataclass(frozen=True, slots=True)
class NodeConditions:
    """Conditions on nodes; all must hold. None: no condition."""

    kind: NodeKind | None = None
    tag: str | None = None
    state: ClusterNodeState | None = None

    def where_clauses(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses."""
        clauses: list[ColumnElement[bool]] = []
        if self.kind is not None:
            clauses.append(col(ClusterNode.kind) == self.kind)
        if self.tag is not None:
            clauses.append(col(ClusterNode.tag) == self.tag)
        if self.state is ClusterNodeState.UNREACHABLE:
            clauses.append(col(ClusterNode.unreachable_at).is_not(None))
        elif self.state is not None:
            state = AdministrativeNodeState(self.state.value)
            clauses += [
                col(ClusterNode.unreachable_at).is_(None),
                col(ClusterNode.state) == state,
            ]
        return clauses


@dataclass(frozen=True, slots=True)
class HostAndOptionalPort:
    """The name of a node in a reference. Without a port the host must have one node."""

    host: str
    port: int | None


def shown_state(state: str, unreachable_at: datetime | None) -> ClusterNodeState:
    """Return the state of a node as it is shown: UNREACHABLE has precedence."""
    return ClusterNodeState.UNREACHABLE if unreachable_at else ClusterNodeState(state)


def select_nodes(columns: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    """Select nodes with these columns and the id, or with all columns."""
    return select(*select_columns(ClusterNode, columns and {"id", *columns}))


async def read_node_page(
    ctx: Context,
    conditions: NodeConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: ClusterNodeOrder,
) -> Page[ColumnRow]:
    """Read a page of nodes. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    list_order = NODE_ORDERS[order]
    statement = select_nodes({list_order.column, *columns}).where(*conditions.where_clauses())
    return await read_ordered_page(ctx, statement, ClusterNode, page_request, list_order)


async def count_nodes(ctx: Context, conditions: NodeConditions) -> int:
    """Count nodes. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    statement = select(func.count()).select_from(ClusterNode).where(*conditions.where_clauses())
    (row,) = await ctx.read(statement)
    return int(row[0])


async def load_all_nodes(ctx: Context) -> Sequence[ColumnRow]:
    """Load all nodes, at most MAX_NODES, by host and port.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    statement = select_nodes().order_by(col(ClusterNode.host), col(ClusterNode.port))
    rows: Sequence[ColumnRow] = await ctx.read(statement)
    return rows


async def is_first_reachable_server(environment: Environment) -> bool:
    """True if the own node has the lowest id of all reachable servers.

    Its server does work that only one server of the platform does.
    """
    lowest_id = select(func.min(col(ClusterNode.id))).where(
        col(ClusterNode.server).is_not(None), col(ClusterNode.unreachable_at).is_(None)
    )
    (row,) = await environment.database.read(lowest_id)
    own_id = environment.own_node.node_id or 0
    return row[0] is None or own_id <= row[0]


async def load_nodes_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load nodes in the order of ids. None for all if the viewer is no ADMIN."""
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None] * len(ids)
    return await read_by_keys(ctx, select_nodes(), col(ClusterNode.id), ids)


async def require_unambiguous_ids_by_address(
    ctx: Context, addresses: Sequence[HostAndOptionalPort], path: Sequence[str]
) -> dict[HostAndOptionalPort, int]:
    """Load the ids of nodes by host, or by host and port. An unknown one is missing.

    Raises InvalidInput if a host without port has several nodes.
    """
    statement = select_nodes({"host", "port"}).where(
        col(ClusterNode.host).in_({address.host for address in addresses})
    )
    rows = await ctx.read(statement)
    ids: dict[HostAndOptionalPort, int] = {}
    for index, address in enumerate(addresses):
        found = [
            row for row in rows if row.host == address.host and address.port in (None, row.port)
        ]
        if len(found) > 1:
            raise InvalidInput(
                f"The host {address.host} has several nodes: give the port too.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=path,
                index=index,
            )
        if found:
            ids[address] = found[0].id
    return ids
