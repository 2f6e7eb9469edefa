"""Load users, addresses, administrators, alias domains and totals of domains."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import DomainAlias, DomainTotal
from models.store.columns import ColumnRow, RowWithId, select_columns
from models.store.keyset_pages import Page
from models.users.tables import DomainAdmin, User
from resolvers import pagination
from resolvers.access import is_visible_user
from resolvers.addresses.loaders import AddressConditions, visible_and_filtered_address_clauses
from resolvers.context import Context
from resolvers.domains import aliases
from resolvers.domains.aliases import AliasDomainConditions
from resolvers.domains.loaders import is_in_administered_domain
from resolvers.list_orders import OwnerPageKey, SortColumn, list_orders, read_list_pages
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions

DomainSelect = Select[*tuple[Any, ...]]


class DomainUserOrder(StrEnum):
    """The order of a list of users or administrators of a domain; ties by id."""

    USERNAME_ASC = "USERNAME_ASC"  # by the normal form of the username
    USERNAME_DESC = "USERNAME_DESC"


class DomainAddressOrder(StrEnum):
    """The order of a list of addresses of a domain; ties by id."""

    LOCAL_PART_ASC = "LOCAL_PART_ASC"  # by the normal form of the local part
    LOCAL_PART_DESC = "LOCAL_PART_DESC"


USER_LIST_ORDERS = list_orders(DomainUserOrder, {"USERNAME": SortColumn("username_key", str)})
ADDRESS_LIST_ORDERS = list_orders(DomainAddressOrder, {"LOCAL_PART": SortColumn("local", str)})


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
class DomainPageKey(OwnerPageKey):
    """A page of the users, addresses or alias domains of a domain that meet the conditions."""

    conditions: UserConditions | AddressConditions | AliasDomainConditions | None = None


@dataclass(frozen=True, slots=True)
class _MemberTable:
    """The rows of a table that belong to a domain."""

    table: type[RowWithId]
    domain_column: Any
    are_users: bool = False  # then only those are listed that the viewer can see
    joined_on: ColumnElement[bool] | None = None  # for a domain column of another table

    async def load_pages(
        self, ctx: Context, page_keys: Sequence[OwnerPageKey]
    ) -> list[Page[ColumnRow]]:
        """Load pages of rows of administered domains.

        Raises InvalidInput for a cursor of another order, or for a filter that is too long.
        """
        return await read_list_pages(ctx, self.table, page_keys, self._select_of_page)

    async def count_of_domains(self, ctx: Context, page_keys: Sequence[OwnerPageKey]) -> list[int]:
        """Count the rows of administered domains, in the given order."""
        statements = [self._select_of_page(ctx, key, {"id"}) for key in page_keys]
        return await pagination.count_rows(ctx, statements)

    def _select_of_page(
        self, ctx: Context, page_key: OwnerPageKey, columns: Collection[str]
    ) -> DomainSelect:
        statement = self._select_of_domain(ctx, page_key.owner_id, columns)
        conditions = page_key.conditions if isinstance(page_key, DomainPageKey) else None
        if isinstance(conditions, UserConditions):
            return statement.where(*user_listing.validated_conditions(ctx, conditions))
        if isinstance(conditions, AddressConditions):
            return statement.where(*visible_and_filtered_address_clauses(ctx, conditions))
        if isinstance(conditions, AliasDomainConditions):
            return statement.where(*aliases.condition_clauses(conditions))
        return statement

    def _select_of_domain(
        self, ctx: Context, domain_id: int, columns: Collection[str]
    ) -> DomainSelect:
        statement: DomainSelect = select(*select_columns(self.table, columns))
        if self.joined_on is not None:
            statement = statement.join(self.domain_column.class_, self.joined_on)
        clauses = [
            self.domain_column == domain_id,
            is_in_administered_domain(ctx, self.domain_column),
        ]
        return statement.where(*clauses, *([is_visible_user(ctx)] if self.are_users else []))


_ADMINS = _MemberTable(
    User,
    col(DomainAdmin.domain_id),
    are_users=True,
    joined_on=col(DomainAdmin.user_id) == col(User.id),
)
_ALIASES = _MemberTable(DomainAlias, col(DomainAlias.domain_id))
_USERS = _MemberTable(User, col(User.domain_id), are_users=True)
_ADDRESSES = _MemberTable(Address, col(Address.domain_id))


async def load_admin_pages_by_domain(
    ctx: Context, page_keys: list[DomainPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the visible administrators of domains."""
    return await _ADMINS.load_pages(ctx, page_keys)


async def count_admins_by_domain(ctx: Context, page_keys: list[DomainPageKey]) -> list[int]:
    """Count the visible administrators of domains, in the given order."""
    return await _ADMINS.count_of_domains(ctx, page_keys)


async def load_alias_pages_by_domain(
    ctx: Context, page_keys: list[DomainPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the alias domains of domains."""
    return await _ALIASES.load_pages(ctx, page_keys)


async def count_aliases_by_domain(ctx: Context, page_keys: list[DomainPageKey]) -> list[int]:
    """Count the alias domains of domains, in the given order."""
    return await _ALIASES.count_of_domains(ctx, page_keys)


async def load_user_pages_by_domain(
    ctx: Context, page_keys: list[DomainPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the users of domains."""
    return await _USERS.load_pages(ctx, page_keys)


async def count_users_by_domain(ctx: Context, page_keys: list[DomainPageKey]) -> list[int]:
    """Count the users of domains, in the given order."""
    return await _USERS.count_of_domains(ctx, page_keys)


async def load_address_pages_by_domain(
    ctx: Context, page_keys: list[DomainPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the addresses of domains."""
    return await _ADDRESSES.load_pages(ctx, page_keys)


async def count_addresses_by_domain(ctx: Context, page_keys: list[DomainPageKey]) -> list[int]:
    """Count the addresses of domains, in the given order."""
    return await _ADDRESSES.count_of_domains(ctx, page_keys)
