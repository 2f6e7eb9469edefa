"""Rows by key, and keyset pages: rows after a cursor, in the order of an index."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from sqlmodel import col

from models.store.columns import ColumnRow, UserOwnedRow, select_columns
from models.store.keyset_pages import Cursor, Page, PageRequest
from models.store.prepared_statements import integer_parameter, prepare_cached
from resolvers.access import is_own_prepared
from resolvers.context import Context

Row = TypeVar("Row")
MAX_SEPARATE_PAGES = (
    4  # pages of a request that are read one after another, each by a prepared statement
)
# Rows of the two steps in which a page with tested conditions is searched: most pages are found
# in the short one.
STEP_LENGTHS = (500, 9_500)
MAX_TESTED_ROWS = sum(STEP_LENGTHS)
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
) -> list[Sequence[ColumnRow]]:
    """Read the rows of each key in a `column`, in the order of the keys."""
    rows_by_key: defaultdict[Any, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.where(column.in_(keys))):
        rows_by_key[getattr(row, column.key)].append(row)
    return [rows_by_key[key] for key in keys]


async def read_own_rows_of_users(
    ctx: Context, table: type[UserOwnedRow], user_ids: Sequence[int]
) -> list[Sequence[ColumnRow]]:
    """Read the few rows of each user in a table. Empty for other users than the viewer."""
    if ctx.viewer.user_id not in user_ids:
        return [[] for _ in user_ids]
    own_rows = await ctx.read_prepared(_own_rows_query(table))
    return [own_rows if user_id == ctx.viewer.user_id else [] for user_id in user_ids]


async def read_own_rows_by_id(
    ctx: Context, table: type[UserOwnedRow], ids: Sequence[int]
) -> list[ColumnRow | None]:
    """Read the viewer's rows with these IDs, in this order. None if there is none."""
    if len(ids) == 1:
        return [next(iter(await ctx.read_prepared(_own_row_query(table), id=ids[0])), None)]
    statement = select(*select_columns(table)).where(col(table.user_id) == ctx.viewer.user_id)
    return await read_by_keys(ctx, statement, col(table.id), ids)


@prepare_cached
def _own_rows_query(table: type[UserOwnedRow]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(table)).where(is_own_prepared(table))


@prepare_cached
def _own_row_query(table: type[UserOwnedRow]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(table)).where(
        is_own_prepared(table), col(table.id) == integer_parameter("id")
    )


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

    @property
    def is_ascending_scan(self) -> bool:
        """True if the rows are read in ascending order of the sort key."""
        return self.is_backward is self.is_descending

    def scan_order(self, sort_key: Iterable[Any]) -> list[Any]:
        """Return the terms of the ORDER BY in which these columns are read."""
        return [column if self.is_ascending_scan else column.desc() for column in sort_key]


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
    statement = statement.where(*after_cursor_sql(page_form, sort_key, parameters))
    count = (
        ROW_COUNT_PARAMETER
        if parameters is None
        else _named_or_valued_parameter(parameters, "count", ROW_COUNT_PARAMETER.type)
    )
    return statement.order_by(*page_form.scan_order(sort_key)).limit(count)


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
    return [columns > cursor_values if page_form.is_ascending_scan else columns < cursor_values]


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
    """A request for a page: its select, its sort key of two columns, and the direction.

    An index gives the rows of the select in the order of the page. If there are tested conditions,
    which no index answers, the page ends after MAX_TESTED_ROWS rows with a search cursor.
    """

    statement: Select[*tuple[Any, ...]]
    page_request: PageRequest
    sort_key: tuple[Any, Any]
    is_descending: bool
    tested_conditions: Sequence[ColumnElement[bool]] = ()

    @property
    def is_ascending_scan(self) -> bool:
        """True if the rows are read in ascending order of the sort key."""
        return self.page_request.is_backward is self.is_descending

    def select_last_row_of_step(self, row_count: int) -> Select[*tuple[Any, ...]]:
        """Select the sort key of the last of `row_count` rows. No row: there are fewer."""
        last = replace(self.page_request, count=0)
        scan = replace(
            self, statement=self.statement.with_only_columns(*self.sort_key), page_request=last
        )
        return _form_and_select(scan)[1].offset(row_count - 1)

    def narrowed_to_step(self, last_row: ColumnRow | None) -> "PageScan":
        """Return the scan of the rows until this one that fulfill the tested conditions."""
        statement = self.statement.where(*self.tested_conditions)
        if last_row is not None:
            columns = tuple_(*self.sort_key)
            end = tuple_(
                *(literal(getattr(last_row, column.key), column.type) for column in self.sort_key)
            )
            statement = statement.where(
                columns <= end if self.is_ascending_scan else columns >= end
            )
        return replace(self, statement=statement, tested_conditions=())

    def after_step(self, last_row: ColumnRow, found_count: int) -> "PageScan":
        """Return the scan for the rest of the page, after the last row of a step."""
        at, key = (getattr(last_row, column.key) for column in self.sort_key)
        request = self.page_request
        rest = replace(
            request,
            count=request.count - found_count,
            cursor=Cursor(request.ordering, at, key),
        )
        return replace(self, page_request=rest)


async def count_rows(ctx: Context, statements: Sequence[Select[*tuple[Any, ...]]]) -> list[int]:
    """Count the rows of several selects in one statement."""
    count = func.count().label("many")
    counts = [select(count).select_from(statement.subquery()) for statement in statements]
    return [int(row.many) for (row,) in await read_union(ctx, counts)]


async def read_pages(ctx: Context, scans: Sequence[PageScan]) -> list[Page[ColumnRow]]:
    """Read pages of one kind of rows, each in reading order, in few statements for any number.

    Each page has its own count, cursor and conditions. A page whose tested conditions find too
    few rows among MAX_TESTED_ROWS ends there, with a search cursor.
    """
    rows_of: list[list[ColumnRow]] = [[] for _ in scans]
    waiting = dict(enumerate(scans))
    for row_count in STEP_LENGTHS:
        steps = list(waiting.values())
        last_rows = await _read_last_rows_of_steps(ctx, steps, row_count)
        narrowed = [
            scan.narrowed_to_step(last_row) for scan, last_row in zip(steps, last_rows, strict=True)
        ]
        found_rows = await _read_rows_in_scan_order(ctx, narrowed)
        followers = {}
        for index, last_row, found in zip(waiting, last_rows, found_rows, strict=True):
            rows_of[index] += found
            if last_row is not None and len(found) <= waiting[index].page_request.count:
                followers[index] = waiting[index].after_step(last_row, len(found))
        waiting = followers
        if not waiting:
            break
    return [
        _page_of_scan(scan, rows, waiting.get(index))
        for index, (scan, rows) in enumerate(zip(scans, rows_of, strict=True))
    ]


def _page_of_scan(
    scan: PageScan, rows: list[ColumnRow], unread_rest: PageScan | None
) -> Page[ColumnRow]:
    """Return a page of rows in scan order. `unread_rest` is the scan that its search left out."""
    request = scan.page_request
    if unread_rest is None:
        return page_from_rows(rows, request)
    page = request.page_from_rows(rows[::-1] if request.is_backward else rows, has_more=True)
    cursor = unread_rest.page_request.cursor
    return page if cursor is None else request.page_with_search_end(page, cursor)


async def _read_last_rows_of_steps(
    ctx: Context, scans: Sequence[PageScan], row_count: int
) -> list[ColumnRow | None]:
    """Read the last row of the next step of each scan; None without tested conditions or row."""
    last_rows: list[ColumnRow | None] = [None] * len(scans)
    tested = [index for index, scan in enumerate(scans) if scan.tested_conditions]
    for indexes in _indexes_by_sort_key(scans, tested):
        selects = [scans[index].select_last_row_of_step(row_count) for index in indexes]
        for index, rows in zip(indexes, await read_union(ctx, selects), strict=True):
            last_rows[index] = rows[0] if rows else None
    return last_rows


def _indexes_by_sort_key(scans: Sequence[PageScan], indexes: Iterable[int]) -> list[list[int]]:
    """Group the scans at these indexes by their sort key: one statement can read each group."""
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in indexes:
        groups[tuple(column.key for column in scans[index].sort_key)].append(index)
    return list(groups.values())


async def _read_rows_in_scan_order(
    ctx: Context, scans: Sequence[PageScan]
) -> list[list[ColumnRow]]:
    """Read the rows of each scan. The number of statements depends on that of the sort keys."""
    if len(scans) == 1:
        return [list(await ctx.read(_form_and_select(scans[0])[1]))]
    rows_of: list[list[ColumnRow]] = [[] for _ in scans]
    for indexes in _indexes_by_sort_key(scans, range(len(scans))):
        selects = {index: _form_and_select(scans[index]) for index in indexes}
        # Scans with a cursor come first, so that the text of the statement depends on how many
        # there are of each form, not on their order.
        order = sorted(selects, key=lambda index: selects[index][0][1:], reverse=True)
        names = [column.key for column in scans[order[0]].sort_key]
        rows_of_selects = await read_union(ctx, [selects[index][1] for index in order], names)
        for index, rows in zip(order, rows_of_selects, strict=True):
            rows_of[index] = rows if scans[index].is_ascending_scan else rows[::-1]
    return rows_of


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
