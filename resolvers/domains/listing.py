"""Load users, addresses, administrators, alias domains and totals of domains."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import AliasDomain, DomainTotal
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.tables import DomainAdmin, User
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.context import Context
from resolvers.domains.loaders import is_in_administered_domain
from resolvers.pagination import PageScan, read_union

DomainSelect = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class DomainMembersPageKey:
    """A page of the users, addresses, administrators or alias domains of a domain."""

    domain_id: int
    page_request: PageRequest
    columns: frozenset[str]


class StoredTotals(NamedTuple):
    """Bytes and messages that the users of a domain store together."""

    size: int
    message_count: int


async def load_storage_of_administered_domains(
    ctx: Context, domain_ids: list[int]
) -> list[StoredTotals]:
    """Load the storage totals of domains. Zero for domains that the viewer does not administer."""
    statement: DomainSelect = (
        select(
            col(DomainTotal.domain_id).label("key"),
            func.sum(col(DomainTotal.used)).label("size"),
            func.sum(col(DomainTotal.messages)).label("message_count"),
        )
        .where(
            col(DomainTotal.domain_id).in_(domain_ids),
            is_in_administered_domain(ctx, col(DomainTotal.domain_id)),
        )
        .group_by(col(DomainTotal.domain_id))
    )
    storage_by_domain = {
        row.key: StoredTotals(int(row.size), int(row.message_count))
        for row in await ctx.read(statement)
    }
    return [storage_by_domain.get(key, StoredTotals(0, 0)) for key in domain_ids]


def _admin_clauses(ctx: Context, page_key: DomainMembersPageKey) -> list[ColumnElement[bool]]:
    domain_column = col(DomainAdmin.domain_id)
    return [
        domain_column == page_key.domain_id,
        is_in_administered_domain(ctx, domain_column),
        is_visible_user(ctx),
    ]


async def load_admin_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the visible administrators of domains, ordered by username."""
    columns = frozenset({"id", "username_key"}).union(*(key.columns for key in page_keys))
    sort_key = (col(User.username_key), col(User.id))
    scans = []
    for page_key in page_keys:
        statement = (
            select(*select_columns(User, columns))
            .join(DomainAdmin, col(DomainAdmin.user_id) == col(User.id))
            .where(*_admin_clauses(ctx, page_key))
        )
        scans.append(PageScan(statement, page_key.page_request, sort_key, is_descending=False))
    return await pagination.read_pages(ctx, scans)


async def count_admins_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the visible administrators of domains, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count)
        .select_from(User)
        .join(DomainAdmin, col(DomainAdmin.user_id) == col(User.id))
        .where(*_admin_clauses(ctx, page_key))
        for page_key in page_keys
    ]
    return [row.many for (row,) in await read_union(ctx, statements)]


def _alias_clauses(ctx: Context, page_key: DomainMembersPageKey) -> list[ColumnElement[bool]]:
    domain_column = col(AliasDomain.domain_id)
    return [domain_column == page_key.domain_id, is_in_administered_domain(ctx, domain_column)]


async def load_alias_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the alias domains of domains, ordered by name."""
    columns = frozenset({"id", "alias"}).union(*(key.columns for key in page_keys))
    sort_key = (col(AliasDomain.alias), col(AliasDomain.id))
    scans = []
    for page_key in page_keys:
        statement = select(*select_columns(AliasDomain, columns)).where(
            *_alias_clauses(ctx, page_key)
        )
        scans.append(PageScan(statement, page_key.page_request, sort_key, is_descending=False))
    return await pagination.read_pages(ctx, scans)


async def count_aliases_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the alias domains of domains, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count).select_from(AliasDomain).where(*_alias_clauses(ctx, page_key))
        for page_key in page_keys
    ]
    return [row.many for (row,) in await read_union(ctx, statements)]


def _user_clauses(ctx: Context, page_key: DomainMembersPageKey) -> list[ColumnElement[bool]]:
    domain_column = col(User.domain_id)
    return [
        domain_column == page_key.domain_id,
        is_in_administered_domain(ctx, domain_column),
        is_visible_user(ctx),
    ]


async def load_user_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the users of domains, ordered by username."""
    columns = frozenset({"id", "username_key"}).union(*(key.columns for key in page_keys))
    sort_key = (col(User.username_key), col(User.id))
    scans = []
    for page_key in page_keys:
        statement = select(*select_columns(User, columns)).where(*_user_clauses(ctx, page_key))
        scans.append(PageScan(statement, page_key.page_request, sort_key, is_descending=False))
    return await pagination.read_pages(ctx, scans)


async def count_users_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the users of domains, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count).select_from(User).where(*_user_clauses(ctx, page_key))
        for page_key in page_keys
    ]
    return [row.many for (row,) in await read_union(ctx, statements)]


def _address_clauses(ctx: Context, page_key: DomainMembersPageKey) -> list[ColumnElement[bool]]:
    domain_column = col(Address.domain_id)
    return [domain_column == page_key.domain_id, is_in_administered_domain(ctx, domain_column)]


async def load_address_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the addresses of domains, ordered by their normal form."""
    columns = frozenset({"id", "local"}).union(*(key.columns for key in page_keys))
    sort_key = (col(Address.local), col(Address.id))
    scans = []
    for page_key in page_keys:
        statement = select(*select_columns(Address, columns)).where(
            *_address_clauses(ctx, page_key)
        )
        scans.append(PageScan(statement, page_key.page_request, sort_key, is_descending=False))
    return await pagination.read_pages(ctx, scans)


async def count_addresses_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[int]:
    """Count the addresses of domains, in the given order."""
    count = func.count().label("many")
    statements = [
        select(count).select_from(Address).where(*_address_clauses(ctx, page_key))
        for page_key in page_keys
    ]
    return [row.many for (row,) in await read_union(ctx, statements)]
