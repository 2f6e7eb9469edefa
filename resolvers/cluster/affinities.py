"""Which node serves a user: pins, and weighted rendezvous hashing. For an ADMIN."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlmodel import col

from mail.addresses.address_syntax import username_key
from models.cluster.nodes import AdministrativeNodeState, NodeKind, UserAffinity
from models.cluster.own_node import address_text
from models.cluster.rendezvous_hash import RendezvousHash, RendezvousNode, user_hash
from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, PageRequest
from models.users.tables import User
from resolvers.access import is_visible_user
from resolvers.cluster.loaders import READ_RULE, load_all_nodes
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders
from resolvers.pagination import PageScan, page_from_rows, read_page
from resolvers.users.selection import UserSelector, selection_condition

MAX_NAME_LENGTH = 320  # characters: 64 and 255 with @ (RFC 5321)
SCANNED_ROWS = 2000  # users of one statement: their nodes are computed at once
MAX_SCANNED_ROWS = 6000  # users that are read for a page with a node as condition
MAX_COUNTED_USERS = 100_000  # of the platform; counting takes about 3 microseconds for each


class UserAffinityOrder(StrEnum):
    """The order of user affinities; ties by id."""

    USERNAME_ASC = "USERNAME_ASC"
    USERNAME_DESC = "USERNAME_DESC"


AFFINITY_ORDERS = list_orders(UserAffinityOrder, {"USERNAME": SortColumn("username_key", str)})


@dataclass(frozen=True, slots=True)
class AffinityConditions:
    """Conditions on user affinities; all must hold. None: no condition."""

    node_id: int | None = None  # serves the user
    users: UserSelector | None = None


@dataclass(frozen=True, slots=True)
class AffinityRow:
    """The nodes of a user. `user_id` is None for a name that no user has."""

    user_id: int | None
    username: str
    username_key: str
    hash: str  # of the user, 16 hexadecimal digits
    node_id: int | None  # that serves the user now
    hashed_node_id: int | None
    pinned_node_id: int | None
    expires_at: datetime | None  # of the pin

    @property
    def id(self) -> int:
        """The id of the user, for cursors."""
        return self.user_id or 0

    @property
    def pinned(self) -> bool:
        """True if a pin decides which node serves the user."""
        return self.node_id is not None and self.node_id == self.pinned_node_id


class NodeTable:
    """The nodes at one time, and the node of each user.

    Users belong to the BACKEND nodes that are UP and reachable. A pin to another node has no effect
    until that node is UP.
    """

    def __init__(self, rows: Sequence[ColumnRow]) -> None:
        self.rows_by_id = {row.id: row for row in rows}
        self.usable_ids = {row.id for row in rows if _serves_users(row)}
        self._hash = RendezvousHash(
            RendezvousNode(row.id, address_text(row.host, row.port), row.weight)
            for row in rows
            if row.id in self.usable_ids
        )

    def share_of_node(self, node_id: int) -> float:
        """Return the share of the users that a usable node has without pins, above 0."""
        weights = [self.rows_by_id[usable_id].weight for usable_id in self.usable_ids]
        return float(self.rows_by_id[node_id].weight / sum(weights))

    def affinity_of_unknown_name(self, name: str) -> AffinityRow:
        """Return the affinity of a name that no user has, by its hash."""
        key = username_key(name)
        hash_of_user = user_hash(key)
        node_id = self._hash.node_id_of_user(hash_of_user)
        return AffinityRow(None, name, key, hash_of_user.hex(), node_id, node_id, None, None)

    def affinity_of_row(self, row: ColumnRow) -> AffinityRow:
        """Return the affinity of a row of `select_users_with_pins`."""
        hash_of_user = user_hash(row.username_key)
        hashed_id = self._hash.node_id_of_user(hash_of_user)
        return AffinityRow(
            row.id,
            row.username,
            row.username_key,
            hash_of_user.hex(),
            row.node_id if row.node_id in self.usable_ids else hashed_id,
            hashed_id,
            row.node_id,
            row.expires_at,
        )


def _serves_users(row: ColumnRow) -> bool:
    """True if the node is a backend that is up and reachable."""
    return bool(
        row.kind == NodeKind.BACKEND
        and row.state == AdministrativeNodeState.UP
        and row.unreachable_at is None
    )


async def load_node_table(ctx: Context) -> NodeTable:
    """Load all nodes. Raises Forbidden unless the viewer is an ADMIN."""
    return NodeTable(await load_all_nodes(ctx))


def is_pin_in_force(ctx: Context) -> ColumnElement[bool]:
    """SQL: the pin has not ended. Pins that have ended are deleted later."""
    expires_at = col(UserAffinity.expires_at)
    return or_(expires_at.is_(None), expires_at > ctx.environment.now())


def select_users_with_pins(ctx: Context) -> Select[*tuple[Any, ...]]:
    """Select `id`, `username` and `username_key` of all visible users, and their pins in force.

    `node_id` and `expires_at` are those of the pin, None for a user without one.
    """
    return (
        select(
            col(User.id),
            col(User.username),
            col(User.username_key),
            col(UserAffinity.node_id),
            col(UserAffinity.expires_at),
        )
        .outerjoin(
            UserAffinity, and_(col(UserAffinity.user_id) == col(User.id), is_pin_in_force(ctx))
        )
        .where(is_visible_user(ctx), col(User.deleted_at).is_(None))
    )


async def load_affinities_by_user_id(ctx: Context, user_ids: list[int]) -> list[AffinityRow | None]:
    """Load the affinities of visible users in the order of the ids.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    table = await load_node_table(ctx)
    rows = await ctx.read(select_users_with_pins(ctx).where(col(User.id).in_(user_ids)))
    affinities = {row.id: table.affinity_of_row(row) for row in rows}
    return [affinities.get(user_id) for user_id in user_ids]


async def affinity_of_unknown_name(ctx: Context, name: str) -> AffinityRow:
    """Return the affinity of a name that no user has, by its hash.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    return (await load_node_table(ctx)).affinity_of_unknown_name(name[:MAX_NAME_LENGTH])


async def read_affinity_page(
    ctx: Context,
    conditions: AffinityConditions,
    page_request: PageRequest,
    order: UserAffinityOrder,
) -> Page[AffinityRow]:
    """Read a page of the affinities of all users.

    With a node as condition, users are read until the page is full, but at most MAX_SCANNED_ROWS:
    then the page is shorter, and has the cursor at which the next one continues. Raises Forbidden
    unless the viewer is an ADMIN, and the errors of `selection_condition`.
    """
    ctx.viewer.require(READ_RULE)
    list_order = AFFINITY_ORDERS[order]
    list_order.require_fitting_cursor(page_request)
    table = await load_node_table(ctx)
    statement = await _select_users(ctx, conditions)
    sort_key = list_order.sort_key(User)
    if conditions.node_id is None:
        scan = PageScan(statement, page_request, sort_key, is_descending=list_order.is_descending)
        page = await read_page(ctx, scan)
        rows = [table.affinity_of_row(row) for row in page.rows]
        return Page(rows, page.has_next, page.has_previous)
    if conditions.node_id not in table.usable_ids:
        return page_from_rows([], page_request)
    expected_rows = math.ceil(
        1.5 * (page_request.count + 10) / table.share_of_node(conditions.node_id)
    )
    scan_request = replace(page_request, count=min(SCANNED_ROWS, expected_rows))
    scan = PageScan(statement, scan_request, sort_key, is_descending=list_order.is_descending)
    return await _search_users_of_node(ctx, table, scan, page_request, conditions.node_id)


async def _search_users_of_node(
    ctx: Context, table: NodeTable, scan: PageScan, page_request: PageRequest, node_id: int
) -> Page[AffinityRow]:
    """Search at most MAX_SCANNED_ROWS users, and the rest of the last part, for those of a node."""
    found: list[AffinityRow] = []
    scanned_count = 0
    async for part in _scan_affinities(ctx, table, scan):
        found += [row for row in part.affinities if row.node_id == node_id]
        if len(found) > page_request.count:
            break
        scanned_count += len(part.affinities)
        if scanned_count >= MAX_SCANNED_ROWS and part.next_cursor is not None:
            page = page_from_rows(found, page_request)
            if page_request.is_backward:
                return replace(page, has_previous=True, search_start_cursor=part.next_cursor)
            return replace(page, has_next=True, search_end_cursor=part.next_cursor)
    return page_from_rows(found[: page_request.count + 1], page_request)


@dataclass(frozen=True, slots=True)
class _ScannedPart:
    """Affinities in the order of a scan, and the cursor that follows them; None at the end."""

    affinities: Sequence[AffinityRow]
    next_cursor: Cursor | None


async def _select_users(ctx: Context, conditions: AffinityConditions) -> Select[*tuple[Any, ...]]:
    clauses: list[ColumnElement[bool]] = []
    if conditions.users is not None:
        clauses.append(await selection_condition(ctx, conditions.users, path="filter"))
    return select_users_with_pins(ctx).where(*clauses)


async def _scan_affinities(
    ctx: Context, table: NodeTable, scan: PageScan
) -> AsyncGenerator[_ScannedPart]:
    """Yield the affinities of all users after the cursor, at first as many as the request names.

    Later parts have SCANNED_ROWS. They come in the order of the scan, which is backward if the
    page is.
    """
    request = scan.page_request
    while True:
        page_scan = PageScan(scan.statement, request, scan.sort_key, scan.is_descending)
        page = await read_page(ctx, page_scan)
        affinities = [table.affinity_of_row(row) for row in page.rows]
        is_backward, cursor = request.is_backward, None
        if page.has_previous if is_backward else page.has_next:
            last = page.rows[0 if is_backward else -1]
            order = AFFINITY_ORDERS[UserAffinityOrder.USERNAME_ASC]
            cursor = order.cursor_of_row(last, request.ordering)
        yield _ScannedPart(affinities[::-1] if is_backward else affinities, cursor)
        if cursor is None:
            return
        request = PageRequest(request.ordering, SCANNED_ROWS, cursor, is_backward)
        await asyncio.sleep(0)  # other requests run between two parts


async def scan_all_affinities(ctx: Context) -> AsyncGenerator[Sequence[AffinityRow]]:
    """Yield the affinities of all users by name, SCANNED_ROWS at a time.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    table = await load_node_table(ctx)
    sort_key = AFFINITY_ORDERS[UserAffinityOrder.USERNAME_ASC].sort_key(User)
    request = PageRequest("affinities", SCANNED_ROWS)
    scan = PageScan(select_users_with_pins(ctx), request, sort_key, is_descending=False)
    async for part in _scan_affinities(ctx, table, scan):
        yield part.affinities


async def count_affinities(ctx: Context, conditions: AffinityConditions) -> int:
    """Count affinities. With a node as condition, the first MAX_COUNTED_USERS users are read.

    Raises Forbidden unless the viewer is an ADMIN, and the errors of `selection_condition`.
    """
    ctx.viewer.require(READ_RULE)
    statement = await _select_users(ctx, conditions)
    if conditions.node_id is None:
        (row,) = await ctx.read(select(func.count()).select_from(statement.subquery()))
        return int(row[0])
    table = await load_node_table(ctx)
    if conditions.node_id not in table.usable_ids:
        return 0
    sort_key = AFFINITY_ORDERS[UserAffinityOrder.USERNAME_ASC].sort_key(User)
    scan = PageScan(statement, PageRequest("count", SCANNED_ROWS), sort_key, is_descending=False)
    count = scanned_count = 0
    async for part in _scan_affinities(ctx, table, scan):
        count += sum(row.node_id == conditions.node_id for row in part.affinities)
        scanned_count += len(part.affinities)
        if scanned_count >= MAX_COUNTED_USERS:
            break
    return count


async def count_users_by_node(ctx: Context, node_ids: list[int]) -> list[int | None]:
    """Count the users of each node. None for all if there are more than MAX_COUNTED_USERS.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    limited = select(col(User.id)).where(col(User.deleted_at).is_(None))
    limited = limited.limit(MAX_COUNTED_USERS + 1)
    (row,) = await ctx.read(select(func.count()).select_from(limited.subquery()))
    if row[0] > MAX_COUNTED_USERS:
        return [None] * len(node_ids)
    counts = Counter[int | None]()
    async for affinities in scan_all_affinities(ctx):
        counts.update(affinity.node_id for affinity in affinities)
    return [counts[node_id] for node_id in node_ids]
