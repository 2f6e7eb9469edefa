"""Rows by their keys, and keyset pages: the rows behind a place, in the order of an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, literal, select, tuple_, union_all

from models.columns import Picked
from models.pages import Ask, Page
from resolvers.context import Context

Row = TypeVar("Row")


async def by_keys(
    ctx: Context, rows: Select[*tuple[Any, ...]], column: Any, keys: Sequence[Any]
) -> list[Picked | None]:
    """The ones of `rows` with these keys in a unique `column`, in their order; else None."""
    found = {getattr(row, column.key): row for row in await ctx.read(rows.where(column.in_(keys)))}
    return [found.get(key) for key in keys]


def _page(
    statement: Select[*tuple[Any, ...]],
    ask: Ask,
    place: tuple[Any, Any],
    *,
    falling: bool,
) -> Select[*tuple[Any, ...]]:
    """The rows of the page and one more, which tells whether there is another page.

    They come in the order they were looked for: `_turned` puts them in reading order.
    """
    up = ask.back is falling
    key = tuple_(*place)
    if at := ask.place:
        here = (at.at, at.id)
        statement = statement.where(key > here if up else key < here)
    statement = statement.order_by(*(c if up else c.desc() for c in place))
    return statement.limit(ask.count + 1)


def _turned(rows: Sequence[Row], ask: Ask) -> list[Row]:
    """The rows in reading order."""
    return list(reversed(rows)) if ask.back else list(rows)


@dataclass(frozen=True, slots=True)
class Scan:
    """A page that is asked for: of these rows, by these columns, the highest first or last."""

    rows: Select[*tuple[Any, ...]]
    ask: Ask
    place: tuple[Any, Any]
    falling: bool


async def pages(ctx: Context, scans: Sequence[Scan]) -> list[Page[Picked]]:
    """These pages of one kind of rows, in one statement, each in reading order."""
    asked = [_page(scan.rows, scan.ask, scan.place, falling=scan.falling) for scan in scans]
    if len(asked) == 1:
        return [scans[0].ask.page(_turned(await ctx.read(asked[0]), scans[0].ask))]
    found = await together(ctx, asked, [column.key for column in scans[0].place])
    return [
        scan.ask.page(rows[::-1] if scan.falling else rows)
        for scan, rows in zip(scans, found, strict=True)
    ]


async def one(ctx: Context, scan: Scan) -> Page[Picked]:
    """One page, in reading order."""
    (found,) = await pages(ctx, [scan])
    return found


async def together(
    ctx: Context, scans: Sequence[Select[*tuple[Any, ...]]], order: Sequence[str] = ()
) -> list[list[Picked]]:
    """The rows of several selects of the same columns, in the `order` of some; in one statement.

    A UNION ALL of short index scans. A window function would first number every row.
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
