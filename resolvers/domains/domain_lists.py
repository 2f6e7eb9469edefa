"""Load pages of domains: of administrators, of the viewer and of relay hosts."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.domains.tables import Domain
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.users.tables import DomainAdmin
from resolvers import pagination
from resolvers.context import Context
from resolvers.domains.loaders import (
    DomainConditions,
    administered_and_filtered_domain_clauses,
    is_administered_domain,
)
from resolvers.list_orders import OwnerPageKey, SelectOfOwner, read_list_pages

DomainPage = Page[ColumnRow]
DomainSelect = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class DomainListPageKey(OwnerPageKey):
    """A page of one owner's domains that meet the conditions."""

    conditions: DomainConditions | None = None


async def load_pages_by_admin(ctx: Context, page_keys: list[DomainListPageKey]) -> list[DomainPage]:
    """Load pages of the domains that users administer, as far as the viewer sees them."""
    return await _load_pages(ctx, page_keys, _select_of_admin)


async def count_domains_by_admin(ctx: Context, page_keys: list[DomainListPageKey]) -> list[int]:
    """Count the domains that users administer, in the order of the keys."""
    return await _count_domains(ctx, page_keys, _select_of_admin)


async def load_pages_by_relay_host(
    ctx: Context, page_keys: list[DomainListPageKey]
) -> list[DomainPage]:
    """Load pages of the domains that send through relay hosts."""
    return await _load_pages(ctx, page_keys, _select_of_relay_host)


async def count_domains_by_relay_host(
    ctx: Context, page_keys: list[DomainListPageKey]
) -> list[int]:
    """Count the domains that send through relay hosts, in the order of the keys."""
    return await _count_domains(ctx, page_keys, _select_of_relay_host)


async def load_pages_of_viewer(
    ctx: Context, page_keys: list[DomainListPageKey]
) -> list[DomainPage]:
    """Load pages of the domains that the viewer administers."""
    return await _load_pages(ctx, page_keys, _select_of_viewer)


async def count_domains_of_viewer(ctx: Context, page_keys: list[DomainListPageKey]) -> list[int]:
    """Count the domains that the viewer administers, for each key."""
    return await _count_domains(ctx, page_keys, _select_of_viewer)


def _select_of_admin(ctx: Context, user_id: int, columns: Collection[str]) -> DomainSelect:
    statement = select(*select_columns(Domain, columns)).join(
        DomainAdmin, col(DomainAdmin.domain_id) == col(Domain.id)
    )
    return statement.where(col(DomainAdmin.user_id) == user_id, is_administered_domain(ctx))


def _select_of_relay_host(
    ctx: Context, relay_host_id: int, columns: Collection[str]
) -> DomainSelect:
    conditions = col(Domain.relay_host_id) == relay_host_id, is_administered_domain(ctx)
    return select(*select_columns(Domain, columns)).where(*conditions)


def _select_of_viewer(ctx: Context, _owner_id: int, columns: Collection[str]) -> DomainSelect:
    domain_ids = ctx.viewer.administered_domains
    return select(*select_columns(Domain, columns)).where(col(Domain.id).in_(domain_ids))


async def _load_pages(
    ctx: Context, page_keys: list[DomainListPageKey], select_of_owner: SelectOfOwner
) -> list[DomainPage]:
    def select_of_key(ctx: Context, key: DomainListPageKey, columns: Collection[str]) -> Any:
        return _filtered_select(ctx, key, select_of_owner(ctx, key.owner_id, columns))

    return await read_list_pages(ctx, Domain, page_keys, select_of_key)


async def _count_domains(
    ctx: Context, page_keys: list[DomainListPageKey], select_of_owner: SelectOfOwner
) -> list[int]:
    statements = [
        _filtered_select(ctx, key, select_of_owner(ctx, key.owner_id, {"id"})) for key in page_keys
    ]
    return await pagination.count_rows(ctx, statements)


def _filtered_select(
    ctx: Context, page_key: DomainListPageKey, statement: DomainSelect
) -> DomainSelect:
    """Add the conditions of a page to the select of its list."""
    if page_key.conditions is None:
        return statement
    return statement.where(*administered_and_filtered_domain_clauses(ctx, page_key.conditions))
