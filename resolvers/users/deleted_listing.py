"""Read pages of deleted users, and the addresses that they would have again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.domains.tables import Domain
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.tables import DeletedUser, User
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName, is_referenced_domain
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql
from resolvers.users import restore
from resolvers.users.delete import can_restore_or_purge_deleted_sql


class DeletedUserOrder(StrEnum):
    """The order of a list of deleted users; ties by id."""

    DELETED_AT_ASC = "DELETED_AT_ASC"
    DELETED_AT_DESC = "DELETED_AT_DESC"


LIST_ORDERS = list_orders(DeletedUserOrder, {"DELETED_AT": SortColumn("deleted_at", datetime)})
ROW_COLUMNS = ("id", "deleted_at", "purge_at", "username", "used", "tags")
MAX_RECOVERABLE_ADDRESSES = 250  # that are listed of one user


@dataclass(frozen=True, slots=True)
class DeletedUserConditions:
    """Conditions on deleted users; all must hold."""

    query: str | None = None  # part of the username or name
    domain: DomainIdOrName | None = None
    deleted_since: datetime | None = None
    deleted_before: datetime | None = None


def select_deleted_users(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    """Return the select of these columns of deleted users and of their rows in `users`."""
    return select(
        *select_columns(DeletedUser, {"id", *(set(columns) & DeletedUser.model_fields.keys())}),
        *select_columns(User, set(columns) - DeletedUser.model_fields.keys()),
    ).join(User, col(User.id) == col(DeletedUser.id))


async def read_deleted_user_page(
    ctx: Context,
    conditions: DeletedUserConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: DeletedUserOrder = DeletedUserOrder.DELETED_AT_DESC,
) -> Page[ColumnRow]:
    """Read a page of the deleted users that the viewer can restore.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = LIST_ORDERS[order]
    statement = select_deleted_users({list_order.column, *columns}).where(
        *_where_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, DeletedUser, page_request, list_order)


async def load_deleted_users_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load deleted users by id, in the given order. None for ids that the viewer can't restore."""
    statement = select_deleted_users(ROW_COLUMNS).where(can_restore_or_purge_deleted_sql(ctx))
    return await read_by_keys(ctx, statement, col(DeletedUser.id), ids)


async def count_deleted_users(ctx: Context, conditions: DeletedUserConditions) -> int:
    """Count the deleted users that the viewer can restore."""
    statement = (
        select(func.count())
        .select_from(DeletedUser)
        .join(User, col(User.id) == col(DeletedUser.id))
        .where(*_where_clauses(ctx, conditions))
    )
    (row,) = await ctx.read(statement)
    return int(row[0])


async def load_recoverable_addresses(ctx: Context, user_ids: list[int]) -> list[Sequence[str]]:
    """Load the addresses that each deleted user would have again, in the order of the ids."""
    statement = select(col(DeletedUser.id), col(DeletedUser.addresses)).join(
        User, col(User.id) == col(DeletedUser.id)
    )
    rows = await read_by_keys(
        ctx, statement.where(can_restore_or_purge_deleted_sql(ctx)), col(DeletedUser.id), user_ids
    )
    stored = [address for row in rows if row for address in row.addresses]
    free_ids = {address["id"] for address in await restore.load_recoverable_addresses(ctx, stored)}
    return [
        [address["display_address"] for address in row.addresses if address["id"] in free_ids]
        if row
        else []
        for row in rows
    ]


def _where_clauses(ctx: Context, conditions: DeletedUserConditions) -> list[ColumnElement[bool]]:
    clauses = [can_restore_or_purge_deleted_sql(ctx)]
    if conditions.query:
        clauses.append(
            contains_text_sql(col(User.username), conditions.query)
            | contains_text_sql(func.coalesce(col(User.name), ""), conditions.query)
        )
    if conditions.domain is not None:
        domain_ids = select(col(Domain.id)).where(is_referenced_domain(conditions.domain))
        clauses.append(col(DeletedUser.domain_id).in_(domain_ids))
    if conditions.deleted_since is not None:
        clauses.append(col(DeletedUser.deleted_at) >= conditions.deleted_since)
    if conditions.deleted_before is not None:
        clauses.append(col(DeletedUser.deleted_at) < conditions.deleted_before)
    return clauses
