"""Pages of the identities of users."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
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
from models.store.keyset_pages import Page
from resolvers import pagination
from resolvers.context import Context
from resolvers.list_orders import OwnerPageKey, SortColumn, list_orders
from resolvers.pagination import PageScan
from resolvers.submission.identities.loaders import (
    AccountIdentities,
    SenderIdentity,
    load_visible_identities_by_user,
    read_identity_columns_by_id,
)
from resolvers.submission.sender_authorization import (
    is_sendable,
)


class IdentityOrder(StrEnum):
    """The order of a list of identities; ties by id."""

    ADDRESS_ASC = "ADDRESS_ASC"  # by the normal form of the local part
    ADDRESS_DESC = "ADDRESS_DESC"


LIST_ORDERS = list_orders(IdentityOrder, {"ADDRESS": SortColumn("local_part", str)})


async def load_visible_identity_pages(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[SenderIdentity]]:
    """Load pages of identities. Raises InvalidInput for a cursor of another order."""
    for key in page_keys:
        key.order.require_fitting_cursor(key.page_request)
    identities_by_user = await ctx.load_many(
        load_visible_identities_by_user, [key.owner_id for key in page_keys]
    )
    scans = []
    for key, account_identities in zip(page_keys, identities_by_user, strict=True):
        # one more, since identities with a row are merged in
        page_request = replace(key.page_request, count=key.page_request.count + 1)
        order_columns = (_bytewise_local_part(ctx), col(Address.id))
        scans.append(
            PageScan(
                _own_addresses_without_row(ctx, account_identities),
                page_request,
                order_columns,
                is_descending=key.order.is_descending,
            )
        )
    pages = []
    for key, account_identities, rows in zip(
        page_keys, identities_by_user, await pagination.read_pages(ctx, scans), strict=True
    ):
        merged = (
            _sorted_page_candidates(account_identities, key, rows.rows)
            if account_identities
            else []
        )
        pages.append(key.page_request.page_from_rows(merged))
    column_names = frozenset[str]().union(*(key.columns for key in page_keys))
    return await _add_detail_columns(ctx, pages, column_names)


def _sorted_page_candidates(
    account_identities: AccountIdentities,
    page_key: OwnerPageKey,
    rows_of_other_own_addresses: Iterable[ColumnRow],
) -> list[SenderIdentity]:
    """Return all identities that can be on the page, sorted, not yet cut to its length."""
    identities = [
        account_identities.identity_of_own_address(row) for row in rows_of_other_own_addresses
    ]
    cursor, is_descending = page_key.page_request.cursor, page_key.order.is_descending
    start_key: Any = (cursor.sort_value, cursor.id) if cursor else None
    identities += [
        identity
        for identity in account_identities.by_address.values()
        if start_key is None
        or (
            identity.sort_key > start_key
            if page_key.page_request.is_backward is is_descending
            else identity.sort_key < start_key
        )
    ]
    return sorted(identities, key=lambda item: item.sort_key, reverse=is_descending)


async def _add_detail_columns(
    ctx: Context, pages: Sequence[Page[SenderIdentity]], column_names: Collection[str]
) -> list[Page[SenderIdentity]]:
    """Return the pages with the requested columns of DETAIL_COLUMNS."""
    rows = await read_identity_columns_by_id(
        ctx, [row for page in pages for row in page.rows], column_names
    )
    return [replace(page, rows=[rows.get(row.id, row) for row in page.rows]) for page in pages]


async def count_visible_identities(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the identities of each list, in the order of the keys."""
    identities_by_user = await ctx.load_many(
        load_visible_identities_by_user, [key.owner_id for key in page_keys]
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
            *select_columns(Address, ("id", "user_id", "display_address", "name")),
            _bytewise_local_part(ctx),
            col(Domain.name).label("domain_name"),
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
            is_sendable(ctx.environment.now()),
        )
    )


def _bytewise_local_part(ctx: Context) -> Any:
    """Return the local part in SQL, sorted by bytes as Python sorts strings."""
    name = "BINARY" if ctx.environment.database.dialect == "sqlite" else "C"
    return collate(col(Address.local), name).label("local")
