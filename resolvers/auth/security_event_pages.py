"""Read the security log: pages, counts and single events that the viewer may see."""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    false,
    func,
    select,
    true,
)
from sqlmodel import col

from models.auth.security_log import (
    AuthProtocol,
    SecurityEvent,
    SecurityEventAction,
    SecurityEventResult,
)
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import is_overseen_user
from resolvers.auth.sortable_ips import address_hex_digits, sortable_ip_hex
from resolvers.context import Context
from resolvers.list_orders import ListOrder, list_orders, read_list_pages
from resolvers.pagination import read_by_keys, read_union


class SecurityEventOrder(StrEnum):
    """The order of a list of security events; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(SecurityEventOrder)
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(SecurityEvent)) - {
    "fold",
    "journaled_at",
}


@dataclass(frozen=True, slots=True)
class SecurityEventFilter:
    """Conditions on events; all must hold."""

    action: SecurityEventAction | None = None
    result: SecurityEventResult | None = None
    protocol: AuthProtocol | None = None
    ip: str | None = None
    network: str | None = None
    since: datetime | None = None  # time of the first of equal events, inclusive
    before: datetime | None = None  # exclusive

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the WHERE clause."""
        conditions: list[ColumnElement[bool]] = [
            getattr(SecurityEvent, name) == value
            for name in ("action", "result", "protocol")
            if (value := getattr(self, name)) is not None
        ]
        if self.ip is not None:
            conditions.append(col(SecurityEvent.ip_key) == sortable_ip_hex(self.ip))
        if self.network is not None:
            network = ipaddress.ip_network(self.network)
            bounds = (
                address_hex_digits(network.network_address),
                address_hex_digits(network.broadcast_address),
            )
            conditions.append(col(SecurityEvent.ip_key).between(*bounds))
        if self.since is not None:
            conditions.append(col(SecurityEvent.created_at) >= self.since)
        if self.before is not None:
            conditions.append(col(SecurityEvent.created_at) < self.before)
        return conditions


@dataclass(frozen=True, slots=True)
class SecurityEventPageKey:
    """A page of events: of one user, or of all users that the viewer oversees."""

    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str]
    filter: SecurityEventFilter = SecurityEventFilter()
    user_id: int | None = None


def _is_visible_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for events: the viewer's, those of users of administered domains, or all."""
    viewer, user_id = ctx.viewer, col(SecurityEvent.user_id)
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and viewer.administered_domains:
        return user_id.in_(select(col(User.id)).where(is_overseen_user(ctx)))
    return user_id == viewer.user_id if viewer.user_id else false()


def _page_conditions(ctx: Context, page: SecurityEventPageKey) -> list[ColumnElement[bool]]:
    """Return all conditions of a page."""
    conditions = [_is_visible_sql(ctx), *page.filter.conditions()]
    return (
        conditions
        if page.user_id is None
        else [col(SecurityEvent.user_id) == page.user_id, *conditions]
    )


async def load_visible_event_pages(
    ctx: Context, requested_pages: list[SecurityEventPageKey]
) -> list[Page[ColumnRow]]:
    """Load these pages, in this order. Raises InvalidInput for a cursor of another order."""
    return await read_list_pages(ctx, SecurityEvent, requested_pages, _select_of_page)


def _select_of_page(
    ctx: Context, page: SecurityEventPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    column_names = VISIBLE_COLUMNS.intersection(columns)
    return select(*select_columns(SecurityEvent, column_names)).where(*_page_conditions(ctx, page))


async def count_visible_events_of_lists(
    ctx: Context, requested_pages: list[SecurityEventPageKey]
) -> list[int]:
    """Count the events of these lists, in this order."""
    count = func.count().label("many")
    scans = [
        select(count).select_from(SecurityEvent).where(*_page_conditions(ctx, key))
        for key in requested_pages
    ]
    return [row.many for (row,) in await read_union(ctx, scans)]


async def load_visible_events_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load events by id, in this order; None for an event that the viewer does not see."""
    statement = select(*select_columns(SecurityEvent, VISIBLE_COLUMNS)).where(_is_visible_sql(ctx))
    return await read_by_keys(ctx, statement, col(SecurityEvent.id), ids)
