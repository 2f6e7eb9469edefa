"""Load, list and count resources."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, true
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import NotFound, check_count_from_one_to_limit
from models.resources.tables import Resource, ResourceKind
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.addresses import loaders as address_loaders
from resolvers.context import Context
from resolvers.domains.loaders import (
    DomainIdOrName,
    is_in_administered_domain,
    is_referenced_domain,
)
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.sql_text import contains_text_sql


class ResourceOrder(StrEnum):
    """The order of a list of resources; ties by id."""

    NAME_ASC = "NAME_ASC"  # without case and accents
    NAME_DESC = "NAME_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


_SORT_COLUMNS = {
    "NAME": SortColumn("folded_name", str),
    "CREATED_AT": SortColumn("created_at", datetime),
}
LIST_ORDERS = list_orders(ResourceOrder, _SORT_COLUMNS)


@dataclass(frozen=True, slots=True)
class ResourceConditions:
    """Conditions of a list of resources; all must hold."""

    domain: DomainIdOrName | None = None
    query: str | None = None
    kind: ResourceKind | None = None
    active: bool | None = None


def is_visible_resource(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for resources of administered domains and of the viewer's domains.

    The viewer's domains are those of the account and of its addresses.
    """
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    own_domain = select(col(User.domain_id)).where(
        col(User.id) == viewer.user_id, col(User.domain_id).is_not(None)
    )
    address_domains = select(col(Address.domain_id)).where(
        col(Address.user_id) == viewer.user_id, col(Address.domain_id).is_not(None)
    )
    return or_(
        col(Resource.domain_id).in_(viewer.administered_domains),
        col(Resource.domain_id).in_(own_domain),
        col(Resource.domain_id).in_(address_domains),
    )


async def load_visible_resources_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load resources by id, in the given order. None for an id that the viewer can't see."""
    statement = select(*select_columns(Resource)).where(is_visible_resource(ctx))
    return await pagination.read_by_keys(ctx, statement, col(Resource.id), ids)


async def load_visible_resource_ids_by_address(
    ctx: Context, addresses: Sequence[str]
) -> dict[str, int]:
    """Load the ids of visible resources by the given addresses. Unknown ones are left out.

    The domain part can be the name of a domain or of an alias domain.
    """
    address_rows = await address_loaders.load_addresses_by_text(ctx, addresses, true())
    address_ids = {
        text: row.id for text, row in zip(addresses, address_rows, strict=True) if row is not None
    }
    statement = select(col(Resource.address_id), col(Resource.id)).where(
        col(Resource.address_id).in_(set(address_ids.values())), is_visible_resource(ctx)
    )
    ids = {row.address_id: int(row.id) for row in await ctx.read(statement)}
    return {text: ids[key] for text, key in address_ids.items() if key in ids}


async def load_texts_of_addresses(ctx: Context, address_ids: list[int]) -> list[str]:
    """Load the texts of the addresses of visible resources, in the given order."""
    statement = select(col(Address.id), col(Address.display_address)).where(
        col(Address.id).in_(address_ids)
    )
    texts = {row.id: str(row.display_address) for row in await ctx.read(statement)}
    return [texts[key] for key in address_ids]


async def require_administered_resources(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load resources in the order of the ids, each once.

    Raises InvalidInput if there are none or too many ids, and NotFound with the index of a
    resource whose domain the viewer does not administer.
    """
    limit = ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(ids), limit, f"From 1 to {limit:,} resources are required.", path=["resources"]
    )
    statement = select(*select_columns(Resource)).where(
        is_in_administered_domain(ctx, col(Resource.domain_id))
    )
    rows = await pagination.read_by_keys(ctx, statement, col(Resource.id), ids)
    rows_by_id: dict[int, ColumnRow] = {}
    for index, (key, row) in enumerate(zip(ids, rows, strict=True)):
        if row is None:
            raise NotFound(str(key), path=["resources"], index=index)
        rows_by_id.setdefault(key, row)
    return list(rows_by_id.values())


async def read_visible_resource_page(
    ctx: Context,
    conditions: ResourceConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: ResourceOrder = ResourceOrder.NAME_ASC,
) -> Page[ColumnRow]:
    """Read a page of the visible resources. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = select(*select_columns(Resource, {"id", list_order.column, *columns})).where(
        *_where_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, Resource, page_request, list_order)


async def count_visible_resources(ctx: Context, conditions: ResourceConditions) -> int:
    """Count the visible resources that meet the conditions."""
    statement = select(func.count()).select_from(Resource).where(*_where_clauses(ctx, conditions))
    (row,) = await ctx.read(statement)
    return int(row[0])


def _where_clauses(ctx: Context, conditions: ResourceConditions) -> list[ColumnElement[bool]]:
    clauses: list[Any] = [is_visible_resource(ctx)]
    if conditions.domain is not None:
        domain_ids = select(col(Domain.id)).where(is_referenced_domain(conditions.domain))
        clauses.append(col(Resource.domain_id).in_(domain_ids))
    if conditions.query:
        clauses.append(
            contains_text_sql(col(Resource.name), conditions.query)
            | contains_text_sql(col(Resource.local), conditions.query)
        )
    if conditions.kind is not None:
        clauses.append(col(Resource.kind) == conditions.kind)
    if conditions.active is not None:
        clauses.append(col(Resource.active).is_(conditions.active))
    return clauses
