"""Pages of the identities of users."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Select,
    collate,
    false,
    func,
    select,
)
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from resolvers import pagination
from resolvers.context import Context
from resolvers.pagination import PageScan
from resolvers.submission.identities import (
    AccountIdentities,
    SenderIdentity,
    load_identities_by_user,
    read_details,
)
from resolvers.submission.sender_authorization import (
    is_sendable,
)

LIST_ORDERING = "identities"  # by normal form, then by id


@dataclass(frozen=True, slots=True)
class IdentityPageKey:
    """A page of a user's identities, sorted by the normal form of their addresses."""

    user_id: int
    page_request: PageRequest
    columns: frozenset[str]


async def load_identity_pages(
    ctx: Context, page_keys: list[IdentityPageKey]
) -> list[Page[SenderIdentity]]:
    """Load pages of identities, each in reading order."""
    identities_by_user = await ctx.load_many(
        load_identities_by_user, [key.user_id for key in page_keys]
    )
    scans = []
    for key, account_identities in zip(page_keys, identities_by_user, strict=True):
        page_request = replace(
            key.page_request, count=key.page_request.count + 1
        )  # one more, since identities with a row are merged in
        order_columns = (_bytewise_local_part(ctx), col(Address.id))
        scans.append(
            PageScan(
                _own_addresses_without_row(ctx, account_identities),
                page_request,
                order_columns,
                is_descending=False,
            )
        )
    found = []
    for key, account_identities, rows in zip(
        page_keys, identities_by_user, await pagination.read_pages(ctx, scans), strict=True
    ):
        merged = (
            _sorted_page_candidates(account_identities, key.page_request, rows.rows)
            if account_identities
            else []
        )
        found.append(key.page_request.page_from_rows(merged))
    column_names = frozenset[str]().union(*(key.columns for key in page_keys))
    return await _add_detail_columns(ctx, found, column_names)


def _sorted_page_candidates(
    account_identities: AccountIdentities,
    page_request: PageRequest,
    rows_of_other_own_addresses: Iterable[ColumnRow],
) -> list[SenderIdentity]:
    """Return all identities that can be on the page, sorted, not yet cut to its length."""
    found = [account_identities.identity_of_own_address(row) for row in rows_of_other_own_addresses]
    start_key: Any = (
        (page_request.cursor.sort_value, page_request.cursor.id) if page_request.cursor else None
    )
    found += [
        one
        for one in account_identities.by_address.values()
        if start_key is None
        or (one.sort_key < start_key if page_request.is_backward else one.sort_key > start_key)
    ]
    return sorted(found, key=lambda one: one.sort_key)


async def _add_detail_columns(
    ctx: Context, pages: Sequence[Page[SenderIdentity]], column_names: Collection[str]
) -> list[Page[SenderIdentity]]:
    """Return the pages with the requested columns of DETAIL_COLUMNS."""
    rows = await read_details(ctx, [one for page in pages for one in page.rows], column_names)
    return [replace(page, rows=[rows.get(one.id, one) for one in page.rows]) for page in pages]


async def count_identities(ctx: Context, page_keys: list[IdentityPageKey]) -> list[int]:
    """Count the identities of each list, in the order of the keys."""
    identities_by_user = await ctx.load_many(
        load_identities_by_user, [key.user_id for key in page_keys]
    )
    count_column = func.count().label("many")
    scans = [
        select(count_column).select_from(
            _own_addresses_without_row(ctx, account_identities).subquery()
        )
        for account_identities in identities_by_user
    ]
    return [
        row.many + (len(identities.by_address) if identities else 0)
        for (row,), identities in zip(
            await pagination.read_union(ctx, scans), identities_by_user, strict=True
        )
    ]


def _own_addresses_without_row(
    ctx: Context, account_identities: AccountIdentities | None
) -> Select[*tuple[Any, ...]]:
    """Return the SQL query for own addresses that may be sent as and have no row."""
    return (
        select(
            *select_columns(Address, ("id", "user_id", "shown", "name")),
            _bytewise_local_part(ctx),
            col(Domain.name).label("place"),
        )
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .where(
            col(Address.user_id) == account_identities.account.id
            if account_identities
            else false(),
            ~col(Address.local).contains("*", autoescape=True),
            col(Address.id).not_in(
                account_identities.address_ids_with_row if account_identities else []
            ),
            col(Domain.active),
            is_sendable(ctx.environment),
        )
    )


def _bytewise_local_part(ctx: Context) -> Any:
    """Return the local part in SQL, sorted by bytes as Python sorts strings."""
    name = "BINARY" if ctx.environment.database.dialect == "sqlite" else "C"
    return collate(col(Address.local), name).label("local")
