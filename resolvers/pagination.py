"""Rows by key, and keyset pages: rows after a cursor, in the order of an index."""

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
    literal,
    select,
    tuple_,
    union_all,
)

from models.store.columns import Picked
from models.store.keyset_pages import Ask, Page
from resolvers.context import Context

Row = TypeVar("Row")
FEW = 4  # pages of a request that are read one after another, each by a prepared statement
COUNT: Any = bindparam("count", type_=Integer)  # rows that the select of a page reads


async def by_keys(
    ctx: Context, rows: Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
) -> list[Picked | None]:
    """Read the row of each key in a unique `column`, in the order of the keys; None if missing."""
    found = {getattr(row, column.key): row for row in await ctx.read(rows.where(column.in_(keys)))}
    return [found.get(key) for key in keys]


async def all_by_keys(
    ctx: Context, rows: Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
) -> list[list[Picked]]:
    """Read the rows of each key in a `column`, in the order of the keys."""
    found: defaultdict[Any, list[Picked]] = defaultdict(list)
    for row in await ctx.read(rows.where(column.in_(keys))):
        found[getattr(row, column.key)].append(row)
    return [found[key] for key in keys]


class Form(NamedTuple):
    """Properties of a page that decide the text of its select.

    `placed` is True for a page with a cursor, `back` for one that is read backwards, `falling` for
    a descending order.
    """

    columns: frozenset[str]
    placed: bool
    back: bool
    falling: bool

    @classmethod
    def of(cls, ask: Ask, columns: frozenset[str], *, falling: bool) -> "Form":
        """Return the form of this page."""
        return cls(columns, ask.place is not None, ask.back, falling)


def form_of_page(
    statement: Select[*tuple[Any, ...]],
    form: Form,
    place: Sequence[Any],
    given: Mapping[str, Any] | None = None,
) -> Select[*tuple[Any, ...]]:
    """Narrow a select to the rows of a page and one more, which shows if another page follows.

    The rows come in the order of the scan: `page_from_rows` puts them in reading order.
    `parameters` holds the values of the page, as `page_parameters` returns them. Without it the
    select has named parameters: such a select can be prepared, but not be combined with another
    one.
    """
    up = form.back is form.falling
    statement = statement.where(*beyond(form, place, given))
    count = COUNT if given is None else _value(given, "count", COUNT.type)
    return statement.order_by(*(c if up else c.desc() for c in place)).limit(count)


def beyond(
    form: Form, place: Sequence[Any], given: Mapping[str, Any] | None = None
) -> list[ColumnElement[bool]]:
    """SQL: the rows after the cursor of a page, in the direction of the page."""
    if not form.placed:
        return []
    here = tuple_(*(_value(given, f"at_{column.key}", column.type) for column in place))
    key = tuple_(*place)
    return [key > here if form.back is form.falling else key < here]


def _value(given: Mapping[str, Any] | None, name: str, kind: Any) -> BindParameter[Any]:
    """A named parameter, or one with its value and a name that no other parameter has."""
    if given is None:
        return bindparam(name, type_=kind)
    return bindparam(name, given[name], type_=kind, unique=True)


def parameters(ask: Ask, place: Sequence[Any]) -> dict[str, Any]:
    """Return the values of a page's parameters by name."""
    given: dict[str, Any] = {"count": ask.count + 1}
    if at := ask.place:
        given |= {f"at_{c.key}": value for c, value in zip(place, (at.at, at.id), strict=True)}
    return given


def page_of(rows: Sequence[Row], ask: Ask) -> Page[Row]:
    """Return the page of rows that are in the order of the scan."""
    return ask.page(rows[::-1] if ask.back else rows)


@dataclass(frozen=True, slots=True)
class Scan:
    """A request for a page: its select, its sort key of two columns, and the direction."""

    rows: Select[*tuple[Any, ...]]
    ask: Ask
    place: tuple[Any, Any]
    falling: bool


async def pages(ctx: Context, scans: Sequence[Scan]) -> list[Page[Picked]]:
    """Read pages of one kind of rows in one statement, each in reading order.

    Each page has its own count, cursor and conditions. Pages with a cursor come first, so that the
    text of the statement depends on how many there are of each form, not on their order.
    """
    asked = []
    for scan in scans:
        form = Form.of(scan.ask, frozenset(), falling=scan.falling)
        given = parameters(scan.ask, scan.place)
        asked.append((form, form_of_page(scan.rows, form, scan.place, given)))
    if len(asked) == 1:
        return [page_of(await ctx.read(asked[0][1]), scans[0].ask)]
    order = sorted(range(len(asked)), key=lambda nth: asked[nth][0][1:], reverse=True)
    names = [column.key for column in scans[0].place]
    found = await together(ctx, [asked[nth][1] for nth in order], names)
    rows_of = dict(zip(order, found, strict=True))
    return [
        scan.ask.page(rows_of[nth][::-1] if scan.falling else rows_of[nth])
        for nth, scan in enumerate(scans)
    ]


async def one(ctx: Context, scan: Scan) -> Page[Picked]:
    """Read one page, in reading order."""
    (found,) = await pages(ctx, [scan])
    return found


async def together(
    ctx: Context, scans: Sequence[Select[*tuple[Any, ...]]], order: Sequence[str] = ()
) -> list[list[Picked]]:
    """Read the rows of several selects of the same columns in one statement, sorted by `order`.

    The statement is a UNION ALL of short index scans. A window function would first number every
    row. A parameter with the same name in two selects has one value in both: so the selects must
    hold their values themselves. Returns the rows of each select.
    """
    numbered = union_all(
        *(
            select(scan.add_columns(literal(nth).label("nth")).subquery())
            for nth, scan in enumerate(scans)
        )
    ).subquery()
    found: list[list[Picked]] = [[] for _ in scans]
    for row in await ctx.read(select(numbered).order_by(*(numbered.c[name] for name in order))):
        found[row.nth].append(row)
    return found
