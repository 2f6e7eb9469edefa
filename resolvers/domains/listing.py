"""Load users, addresses, administrators, alias domains and totals of domains."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import AliasDomain, DomainTotal
from models.store.columns import ColumnRow, RowWithId, select_columns
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


@dataclass(frozen=True, slots=True)
class _MemberTable:
    """The rows of a table that belong to a domain, as a list sorted by one column and the id."""

    table: type[RowWithId]
    sort_column: str
    domain_column: Any
    are_users: bool = False  # then only those are listed that the viewer can see
    joined_on: ColumnElement[bool] | None = None  # for a domain column of another table

    async def load_pages(
        self, ctx: Context, page_keys: list[DomainMembersPageKey]
    ) -> list[Page[ColumnRow]]:
        """Load these pages of rows of administered domains."""
        columns = frozenset({"id", self.sort_column}).union(*(key.columns for key in page_keys))
        sort_key = (col(getattr(self.table, self.sort_column)), col(self.table.id))
        scans = [
            PageScan(
                self._of_domain(ctx, select(*select_columns(self.table, columns)), key),
                key.page_request,
                sort_key,
                is_descending=False,
            )
            for key in page_keys
        ]
        return await pagination.read_pages(ctx, scans)

    async def count(self, ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
        """Count the rows of administered domains, in the given order."""
        count = select(func.count().label("many")).select_from(self.table)
        statements = [self._of_domain(ctx, count, key) for key in page_keys]
        return [row.many for (row,) in await read_union(ctx, statements)]

    def _of_domain(
        self, ctx: Context, statement: DomainSelect, page_key: DomainMembersPageKey
    ) -> DomainSelect:
        if self.joined_on is not None:
            statement = statement.join(self.domain_column.class_, self.joined_on)
        clauses = [
            self.domain_column == page_key.domain_id,
            is_in_administered_domain(ctx, self.domain_column),
        ]
        return statement.where(*clauses, *([is_visible_user(ctx)] if self.are_users else []))


_ADMINS = _MemberTable(
    User,
    "username_key",
    col(DomainAdmin.domain_id),
    are_users=True,
    joined_on=col(DomainAdmin.user_id) == col(User.id),
)
_ALIASES = _MemberTable(AliasDomain, "alias", col(AliasDomain.domain_id))
_USERS = _MemberTable(User, "username_key", col(User.domain_id), are_users=True)
_ADDRESSES = _MemberTable(Address, "local", col(Address.domain_id))


async def load_admin_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the visible administrators of domains, ordered by username."""
    return await _ADMINS.load_pages(ctx, page_keys)


async def count_admins_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the visible administrators of domains, in the given order."""
    return await _ADMINS.count(ctx, page_keys)


async def load_alias_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the alias domains of domains, ordered by name."""
    return await _ALIASES.load_pages(ctx, page_keys)


async def count_aliases_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the alias domains of domains, in the given order."""
    return await _ALIASES.count(ctx, page_keys)


async def load_user_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the users of domains, ordered by username."""
    return await _USERS.load_pages(ctx, page_keys)


async def count_users_by_domain(ctx: Context, page_keys: list[DomainMembersPageKey]) -> list[int]:
    """Count the users of domains, in the given order."""
    return await _USERS.count(ctx, page_keys)


async def load_address_pages_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the addresses of domains, ordered by their normal form."""
    return await _ADDRESSES.load_pages(ctx, page_keys)


async def count_addresses_by_domain(
    ctx: Context, page_keys: list[DomainMembersPageKey]
) -> list[int]:
    """Count the addresses of domains, in the given order."""
    return await _ADDRESSES.count(ctx, page_keys)
