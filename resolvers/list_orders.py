"""Orders of lists: the sort column of each order, its direction, and its cursors."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Select
from sqlmodel import SQLModel, col

from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, PageRequest, SortValue
from models.store.prepared_statements import prepare_cached
from resolvers import pagination
from resolvers.context import Context
from resolvers.pagination import PageForm, PageScan

Order = TypeVar("Order", bound=StrEnum)
PageSelect = Select[*tuple[Any, ...]]
SelectOfOwner = Callable[[Context, int, Collection[str]], PageSelect]
SelectOfViewer = Callable[[Collection[str]], PageSelect]


class SortColumn(NamedTuple):
    """A column that a list is sorted by, and the type of its values."""

    name: str
    value_type: type[Any]


CREATED_AT = {"CREATED_AT": SortColumn("created_at", datetime)}


@dataclass(frozen=True, slots=True)
class ListOrder:
    """The order of a list by one column and then by id. An index has both columns."""

    column: str
    value_type: type[Any]
    is_descending: bool

    @classmethod
    def of_value(cls, order: StrEnum, columns: Mapping[str, SortColumn]) -> "ListOrder":
        """Return the order of an enum value such as `NAME_ASC`, by the column of its key `NAME`."""
        key, _, direction = order.rpartition("_")
        column = columns[key]
        return cls(column.name, column.value_type, direction == "DESC")

    def sort_value(self, row: Any) -> SortValue:
        """Return the value that a row is sorted by."""
        value: SortValue = getattr(row, self.column)
        return value

    def cursor_of_row(self, row: Any, ordering: str) -> Cursor:
        """Return the cursor of a row in the list with this ordering name."""
        return Cursor(ordering, self.sort_value(row), row.id)

    def sort_key(self, table: type[SQLModel]) -> tuple[Any, Any]:
        """Return the two columns of a table that its rows are sorted by."""
        return col(getattr(table, self.column)), col(getattr(table, "id"))  # noqa: B009

    def require_fitting_cursor(self, page_request: PageRequest) -> None:
        """Raise InvalidInput if the cursor has a value of another type than the sort column."""
        page_request.cursor_sort_value(self.value_type)


def list_orders(
    enum: type[Order], columns: Mapping[str, SortColumn] = CREATED_AT
) -> dict[Order, ListOrder]:
    """Return the order of each value of an enum, by the columns of the keys of the values."""
    return {order: ListOrder.of_value(order, columns) for order in enum}


@dataclass(frozen=True, slots=True)
class OwnerPageKey:
    """A page of the rows that belong to one object, such as the access tokens of a user."""

    owner_id: int
    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str] = frozenset()  # besides those of the sort key


class ListPageKey(Protocol):
    """A page of one of several lists that are read together."""

    @property
    def page_request(self) -> PageRequest:
        """Cursor and number of rows of the page."""

    @property
    def order(self) -> ListOrder:
        """Order of the list."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns to read, besides those of the sort key."""


PageKey = TypeVar("PageKey", bound=ListPageKey)


async def read_ordered_page(
    ctx: Context,
    statement: Select[*tuple[Any, ...]],
    table: type[SQLModel],
    page_request: PageRequest,
    order: ListOrder,
) -> Page[ColumnRow]:
    """Read a page of a select of a table's rows. The select has the sort column and the id.

    Raises InvalidInput for a cursor of another order.
    """
    order.require_fitting_cursor(page_request)
    scan = PageScan(
        statement, page_request, order.sort_key(table), is_descending=order.is_descending
    )
    return await pagination.read_page(ctx, scan)


async def read_owner_pages(
    ctx: Context,
    table: type[SQLModel],
    page_keys: Sequence[OwnerPageKey],
    select_of_owner: SelectOfOwner,
) -> list[Page[ColumnRow]]:
    """Read pages of the rows of several owners, in one statement for each sort column.

    `select_of_owner` gets the id of the owner and the columns to read. Raises InvalidInput for a
    cursor of another order.
    """

    def select_of_key(ctx: Context, key: OwnerPageKey, columns: Collection[str]) -> PageSelect:
        return select_of_owner(ctx, key.owner_id, columns)

    return await read_list_pages(ctx, table, page_keys, select_of_key)


async def read_list_pages(
    ctx: Context,
    table: type[SQLModel],
    page_keys: Sequence[PageKey],
    select_of_key: Callable[[Context, PageKey, Collection[str]], PageSelect],
) -> list[Page[ColumnRow]]:
    """Read pages of several lists of a table's rows, in one statement for each sort column.

    `select_of_key` gets the key of a page and the columns to read, and returns the select of the
    whole list. Raises InvalidInput for a cursor of another order.
    """
    sort_columns = {"id", *(key.order.column for key in page_keys)}
    columns = sort_columns.union(*(key.columns for key in page_keys))
    scans = []
    for key in page_keys:
        key.order.require_fitting_cursor(key.page_request)
        statement = select_of_key(ctx, key, columns)
        sort_key = key.order.sort_key(table)
        scans.append(
            PageScan(statement, key.page_request, sort_key, is_descending=key.order.is_descending)
        )
    return await pagination.read_pages(ctx, scans)


async def read_whole_own_list(
    ctx: Context,
    table: type[SQLModel],
    page_keys: Sequence[OwnerPageKey],
    select_own_rows: SelectOfViewer,
    **parameters: Any,
) -> list[Page[ColumnRow]]:
    """Read the page of a list of all rows of the viewer by a prepared statement.

    Returns an empty list if there are several pages, or the key has another owner or conditions.
    `select_own_rows` gets the columns to read, and returns the select of the list. Its named
    parameters are those of `Context.read_prepared`. Raises InvalidInput for a cursor of another
    order.
    """
    (key, *others), user_id = page_keys, ctx.viewer.user_id
    if others or key != type(key)(user_id, key.page_request, key.order, key.columns):
        return []
    key.order.require_fitting_cursor(key.page_request)
    columns = key.columns | {"id", key.order.column}
    page_form = PageForm.of_page(key.page_request, columns, is_descending=key.order.is_descending)
    sort_key = key.order.sort_key(table)
    query = _own_page_query(select_own_rows, page_form, sort_key)
    parameters |= pagination.page_parameters(key.page_request, sort_key)
    return [
        pagination.page_from_rows(await ctx.read_prepared(query, **parameters), key.page_request)
    ]


@prepare_cached
def _own_page_query(
    select_own_rows: SelectOfViewer, page_form: PageForm, sort_key: tuple[Any, Any]
) -> PageSelect:
    return pagination.page_select(select_own_rows(page_form.columns), page_form, sort_key)
