"""Orders of lists: the sort column of each order, its direction, and its cursors."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Select
from sqlmodel import SQLModel, col

from models.errors import InvalidInput
from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, PageRequest, SortValue
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.context import Context
from resolvers.pagination import PageScan


class SortColumn(NamedTuple):
    """A column that a list is sorted by, and the type of its values."""

    name: str
    value_type: type[Any]


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
        cursor = page_request.cursor
        if cursor and not isinstance(cursor.sort_value, self.value_type):
            path = ["before" if page_request.is_backward else "after"]
            raise InvalidInput(
                "not a cursor of this list", constraint=ValidationConstraint.CURSOR, path=path
            )


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
