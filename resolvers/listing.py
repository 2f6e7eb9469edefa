"""Keyset pages in SQL: the rows behind a place, in the order of an index."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_

from models.pages import Ask

Row = TypeVar("Row")


def page(
    statement: Select[*tuple[Any, ...]],
    ask: Ask,
    place: tuple[Any, Any],
    *,
    falling: bool,
) -> Select[*tuple[Any, ...]]:
    """The rows of the page and one more, which tells whether there is another page.

    They come in the order they were looked for: `turned` puts them in reading order.
    """
    up = ask.back is falling
    key = tuple_(*place)
    if at := ask.place:
        here = (at.at, at.id)
        statement = statement.where(key > here if up else key < here)
    statement = statement.order_by(*(c if up else c.desc() for c in place))
    return statement.limit(ask.count + 1)


def turned(rows: Sequence[Row], ask: Ask) -> list[Row]:
    """The rows in reading order."""
    return list(reversed(rows)) if ask.back else list(rows)
