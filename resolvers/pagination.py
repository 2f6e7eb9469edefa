"""Rows by key, and keyset pages: rows after a cursor, in the order of an index."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    bindparam,
    func,
    literal,
    select,
    tuple_,
    union_all,
)

from models.store.columns import ColumnRow
from models.store.keyset_pages import Page, PageRequest
from resolvers.context import Context

Row = TypeVar("Row")
MAX_SEPARATE_PAGES = (
    4  # pages of a request that are read one after another, each by a prepared statement
)
ROW_COUNT_PARAMETER: Any = bindparam("count", type_=Integer)  # rows that the select of a page reads


async def read_by_keys(
    ctx: Context, statement: Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
) -> list[ColumnRow | None]:
    """Read the row of each key in a unique `column`, in the order of the keys; None if missing."""
    rows_by_key = {
        getattr(row, column.key): row for row in await ctx.read(statement.where(column.in_(keys)))
    }
    return [rows_by_key.get(key) for key in keys]


async def read_all_by_keys(
    ctx: Context, statement: Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
) -> list[list[ColumnRow]]:
    """Read the rows of each key in a `column`, in the order of the keys."""
    rows_by_key: defaultdict[Any, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.where(column.in_(keys))):
        rows_by_key[getattr(row, column.key)].append(row)
    return [rows_by_key[key] for key in keys]


class PageForm(NamedTuple):
    """Properties of a page that decide the text of its select.

    `has_cursor` is True for a page with a cursor, `is_backward` for one that is read backwards,
    `is_descending` for a descending order.
    """

    columns: frozenset[str]
    has_cursor: bool
    is_backward: bool
    is_descending: bool

    @classmethod
    def of_page(
        cls, page_request: PageRequest, columns: frozenset[str], *, is_descending: bool
    ) -> "PageForm":
        """Return the form of this page."""
        return cls(
            columns, page_request.cursor is not None, page_request.is_backward, is_descending
        )


def page_select(
    statement: Select[*tuple[Any, ...]],
    page_form: PageForm,
    sort_key: Sequence[Any],
    parameters: Mapping[str, Any] | None = None,
) -> Select[*tuple[Any, ...]]:
    """Narrow a select to the rows of a page and one more, which shows if another page follows.

    The rows come in the order of the scan: `page_from_rows` puts them in reading order.
    `parameters` holds the values of the page, as `page_parameters` returns them. Without it the
    select has named parameters: such a select can be prepared, but not be combined with another
    one.
    """
    is_ascending = page_form.is_backward is page_form.is_descending
    statement = statement.where(*after_cursor_sql(page_form, sort_key, parameters))
    count = (
        ROW_COUNT_PARAMETER
        if parameters is None
        else _named_or_valued_parameter(parameters, "count", ROW_COUNT_PARAMETER.type)
    )
    return statement.order_by(
        *(column if is_ascending else column.desc() for column in sort_key)
    ).limit(count)


def after_cursor_sql(
    page_form: PageForm, sort_key: Sequence[Any], parameters: Mapping[str, Any] | None = None
) -> list[ColumnElement[bool]]:
    """SQL: the rows after the cursor of a page, in the direction of the page."""
    if not page_form.has_cursor:
        return []
    cursor_values = tuple_(
        *(
            _named_or_valued_parameter(parameters, f"at_{column.key}", column.type)
            for column in sort_key
        )
    )
    columns = tuple_(*sort_key)
    return [
        columns > cursor_values
        if page_form.is_backward is page_form.is_descending
        else columns < cursor_values
    ]


def _named_or_valued_parameter(
    parameters: Mapping[str, Any] | None, name: str, sql_type: Any
) -> BindParameter[Any]:
    """A named parameter, or one with its value and a name that no other parameter has."""
    if parameters is None:
        return bindparam(name, type_=sql_type)
    return bindparam(name, parameters[name], type_=sql_type, unique=True)


def page_parameters(page_request: PageRequest, sort_key: Sequence[Any]) -> dict[str, Any]:
    """Return the values of a page's parameters by name."""
    values: dict[str, Any] = {"count": page_request.count + 1}
    if cursor := page_request.cursor:
        values |= {
            f"at_{c.key}": value
            for c, value in zip(sort_key, (cursor.sort_value, cursor.id), strict=True)
        }
    return values


def page_from_rows(rows: Sequence[Row], page_request: PageRequest) -> Page[Row]:
    """Return the page of rows that are in the order of the scan."""
    return page_request.page_from_rows(rows[::-1] if page_request.is_backward else rows)


def rows_beyond_cursor(
    rows: Sequence[Row], sort_keys: Sequence[Any], cursor_key: Any, *, is_backward: bool
) -> Sequence[Row]:
    """Return the rows after a cursor or, if `is_backward`, before it.

    The rows are in memory in ascending order of `sort_keys`. The row of the cursor need not be one
    of them.
    """
    if is_backward:
        return rows[: bisect_left(sort_keys, cursor_key)]
    return rows[bisect_right(sort_keys, cursor_key) :]


@dataclass(frozen=True, slots=True)
class PageScan:
    """A request for a page: its select, its sort key of two columns, and the direction."""

    statement: Select[*tuple[Any, ...]]
    page_request: PageRequest
    sort_key: tuple[Any, Any]
    is_descending: bool


async def count_rows(ctx: Context, statements: Sequence[Select[*tuple[Any, ...]]]) -> list[int]:
    """Count the rows of several selects in one statement."""
    count = func.count().label("many")
    counts = [select(count).select_from(statement.subquery()) for statement in statements]
    return [int(row.many) for (row,) in await read_union(ctx, counts)]


async def read_pages(ctx: Context, scans: Sequence[PageScan]) -> list[Page[ColumnRow]]:
    """Read pages of one kind of rows, each in reading order, in one statement for each sort key.

    Each page has its own count, cursor and conditions. Pages with a cursor come first, so that the
    text of the statement depends on how many there are of each form, not on their order.
    """
    if len(scans) == 1:
        return [await _read_single_page(ctx, scans[0])]
    indexes_by_key: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, scan in enumerate(scans):
        indexes_by_key[tuple(column.key for column in scan.sort_key)].append(index)
    pages: dict[int, Page[ColumnRow]] = {}
    for indexes in indexes_by_key.values():
        scans_of_key = [scans[index] for index in indexes]
        pages |= zip(indexes, await _read_pages_of_one_sort_key(ctx, scans_of_key), strict=True)
    return [pages[index] for index in range(len(scans))]


async def _read_single_page(ctx: Context, scan: PageScan) -> Page[ColumnRow]:
    _, statement = _form_and_select(scan)
    return page_from_rows(await ctx.read(statement), scan.page_request)


async def _read_pages_of_one_sort_key(
    ctx: Context, scans: Sequence[PageScan]
) -> list[Page[ColumnRow]]:
    forms_and_selects = [_form_and_select(scan) for scan in scans]
    order = sorted(range(len(scans)), key=lambda nth: forms_and_selects[nth][0][1:], reverse=True)
    names = [column.key for column in scans[0].sort_key]
    rows_of_selects = await read_union(ctx, [forms_and_selects[nth][1] for nth in order], names)
    rows_of = dict(zip(order, rows_of_selects, strict=True))
    return [
        scan.page_request.page_from_rows(
            rows_of[index][::-1] if scan.is_descending else rows_of[index]
        )
        for index, scan in enumerate(scans)
    ]


def _form_and_select(scan: PageScan) -> tuple[PageForm, Select[*tuple[Any, ...]]]:
    page_form = PageForm.of_page(scan.page_request, frozenset(), is_descending=scan.is_descending)
    parameters = page_parameters(scan.page_request, scan.sort_key)
    return page_form, page_select(scan.statement, page_form, scan.sort_key, parameters)


async def read_page(ctx: Context, scan: PageScan) -> Page[ColumnRow]:
    """Read one page, in reading order."""
    (page,) = await read_pages(ctx, [scan])
    return page


async def read_union(
    ctx: Context, selects: Sequence[Select[*tuple[Any, ...]]], column_names: Sequence[str] = ()
) -> list[list[ColumnRow]]:
    """Read the rows of several selects of the same columns in one statement.

    The rows of each select are sorted by `column_names`.

    The statement is a UNION ALL of short index scans. A window function would first number every
    row. A parameter with the same name in two selects has one value in both: so the selects must
    hold their values themselves. Returns the rows of each select.
    """
    numbered = union_all(
        *(
            select(scan.add_columns(literal(index).label("nth")).subquery())
            for index, scan in enumerate(selects)
        )
    ).subquery()
    rows_of_selects: list[list[ColumnRow]] = [[] for _ in selects]
    for row in await ctx.read(
        select(numbered).order_by(*(numbered.c[name] for name in column_names))
    ):
        rows_of_selects[row.nth].append(row)
    return rows_of_selects
