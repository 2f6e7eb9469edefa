"""Reading of the ban policy, of bans in force, and of delays after failures. For an ADMIN."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlmodel import SQLModel, col

from mail.throttling.ban_changes import policy_from_row
from models.auth.credentials import Throttle
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.throttling.networks import Network, network_number
from models.throttling.policy import POLICY_ID, BanPolicyValues, widest_prefix_length
from models.throttling.tables import BanListHost, BanPolicy, NetworkBan
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.throttling.validation import normalized_networks
from resolvers.viewer import GuardRule

READ_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)
MAX_FILTER_NETWORKS = 100  # each is a condition of the statement


class NetworkBanOrder(StrEnum):
    """The order of bans; ties by id."""

    STARTED_AT_DESC = "STARTED_AT_DESC"
    STARTED_AT_ASC = "STARTED_AT_ASC"
    ENDS_AT_ASC = "ENDS_AT_ASC"
    ENDS_AT_DESC = "ENDS_AT_DESC"


class LoginPenaltyOrder(StrEnum):
    """The order of delays after failures; ties by id."""

    LAST_PENALTY_AT_DESC = "LAST_PENALTY_AT_DESC"
    LAST_PENALTY_AT_ASC = "LAST_PENALTY_AT_ASC"


BAN_ORDERS = list_orders(
    NetworkBanOrder,
    {"STARTED_AT": SortColumn("started_at", datetime), "ENDS_AT": SortColumn("ends_at", datetime)},
)
PENALTY_ORDERS = list_orders(
    LoginPenaltyOrder, {"LAST_PENALTY_AT": SortColumn("wait_since", datetime)}
)


@dataclass(frozen=True, slots=True)
class NetworkConditions:
    """Conditions of bans and delays. `networks` None: all; else those that overlap one of them."""

    networks: tuple[str, ...] | None = None
    path: tuple[str, ...] = ("filter", "networks")

    def validated_where_clauses(self, table: Any) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses. Raises InvalidInput for too many networks."""
        if self.networks is None:
            return []
        parsed = normalized_networks(self.networks, self.path, max_count=MAX_FILTER_NETWORKS)
        overlapping = select(col(table.id)).where(or_(*overlap_clauses(table, parsed.values())))
        return [col(table.id).in_(overlapping)]  # a subquery, so that it reads its own index


def overlap_clauses(table: Any, networks: Collection[Network]) -> list[ColumnElement[bool]]:
    """Return conditions, of which one must hold: a row's network overlaps one of these.

    Each condition reads a small part of the index of `first_ip`.
    """
    clauses: list[ColumnElement[bool]] = []
    first_ips, last_ips = set[str](), set[str]()
    for network in networks:
        number = network_number(network)
        first, last = number.first_and_last_digits
        clauses.append(col(table.first_ip).between(first, last))
        for containing in number.containing_networks(widest_prefix_length(network.version)):
            first, last = containing.first_and_last_digits
            first_ips.add(first)
            last_ips.add(last)
    # Two networks of CIDR are disjoint or one contains the other. So a row with a first and a last
    # address from these sets contains one of the networks, also if the two are of different ones.
    if first_ips:
        clauses.append(
            # concat: SQLite would look up each pair of a first and a last address in the index
            col(table.first_ip).in_(sorted(first_ips))
            & col(table.last_ip).concat("").in_(sorted(last_ips))
        )
    return clauses


async def load_policy(ctx: Context) -> BanPolicyValues:
    """Return the ban policy, or its defaults. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    rows = await ctx.read(select(*select_columns(BanPolicy)))
    return policy_from_row(rows[0]) if rows else BanPolicyValues()


async def load_policies_by_id(ctx: Context, ids: list[int]) -> list[BanPolicyValues | None]:
    """Return the ban policy for its id. None for other ids, or if the viewer is no ADMIN."""
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None] * len(ids)
    policy = await load_policy(ctx)
    return [policy if policy_id == POLICY_ID else None for policy_id in ids]


async def load_list_hosts(ctx: Context, keys: list[str]) -> list[Sequence[ColumnRow]]:
    """Return all resolved host names of both lists, in the order of names, for each key.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    statement = select(*select_columns(BanListHost)).order_by(col(BanListHost.name))
    rows = await ctx.read(statement)
    return [rows for _ in keys]


def _select_bans_in_force(ctx: Context, conditions: NetworkConditions, *columns: Any) -> Any:
    return select(*columns).where(
        col(NetworkBan.ends_at) > ctx.environment.now(),
        *conditions.validated_where_clauses(NetworkBan),
    )


def _select_waits(ctx: Context, conditions: NetworkConditions, *columns: Any) -> Any:
    """Select the names and networks that must wait now, since a limit was reached."""
    return select(*columns).where(
        col(Throttle.wait_since).is_not(None),
        col(Throttle.until) > ctx.environment.now(),
        *conditions.validated_where_clauses(Throttle),
    )


async def read_ban_page(
    ctx: Context,
    conditions: NetworkConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: NetworkBanOrder,
) -> Page[ColumnRow]:
    """Read a page of the bans in force. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    list_order = BAN_ORDERS[order]
    needed = select_columns(NetworkBan, {"id", list_order.column, *columns})
    statement: Select[Any] = _select_bans_in_force(ctx, conditions, *needed)
    return await read_ordered_page(ctx, statement, NetworkBan, page_request, list_order)


async def read_all_bans(ctx: Context) -> Sequence[ColumnRow]:
    """Read all bans in force, the newest first; at most `MAX_BANS`.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    statement = _select_bans_in_force(ctx, NetworkConditions(), *select_columns(NetworkBan))
    order = col(NetworkBan.started_at).desc(), col(NetworkBan.id).desc()
    rows: Sequence[ColumnRow] = await ctx.read(statement.order_by(*order))
    return rows


async def count_bans(ctx: Context, conditions: NetworkConditions) -> int:
    """Count the bans in force. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    (row,) = await ctx.read(_select_bans_in_force(ctx, conditions, func.count()))
    return int(row[0])


async def read_penalty_page(
    ctx: Context,
    conditions: NetworkConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: LoginPenaltyOrder,
) -> Page[ColumnRow]:
    """Read a page of the delays in force. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    list_order = PENALTY_ORDERS[order]
    needed = select_columns(Throttle, {"id", list_order.column, *columns})
    statement: Select[Any] = _select_waits(ctx, conditions, *needed)
    return await read_ordered_page(ctx, statement, Throttle, page_request, list_order)


async def count_penalties(ctx: Context, conditions: NetworkConditions) -> int:
    """Count the delays in force. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    (row,) = await ctx.read(_select_waits(ctx, conditions, func.count()))
    return int(row[0])


async def load_bans_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load bans, also past ones, in the order of ids. None for all if the viewer is no ADMIN."""
    return await _load_rows_for_admin(ctx, NetworkBan, ids)


async def load_penalties_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load delays in force in the order of ids. None for all if the viewer is no ADMIN."""
    rows = await _load_rows_for_admin(ctx, Throttle, ids)
    now = ctx.environment.now()
    return [row if row and row.wait_since and row.until > now else None for row in rows]


async def _load_rows_for_admin(
    ctx: Context, table: type[SQLModel], ids: list[int]
) -> list[ColumnRow | None]:
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None] * len(ids)
    id_column = select_columns(table, ["id"])[0]
    return await read_by_keys(ctx, select(*select_columns(table)), id_column, ids)
