"""Relay connections of keyset pages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import strawberry

from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.object_views import Made, View, Viewed
from graph.types.row_mapping import Item, listed
from models.store.keyset_pages import Ask, Cursor, Page

Node = TypeVar("Node")
Place = Callable[[Any], Cursor]


def page_asked(ordering: str, *arguments: Any) -> Ask:
    """Return the page request of the arguments first, after, last and before.

    Raises InvalidInput if they are inconsistent or a cursor is malformed.
    """
    return Ask.of(ordering, *(None if value is strawberry.UNSET else value for value in arguments))


class Placed(NamedTuple):
    """An item of a page with its row and the function that returns its cursor."""

    place: Place
    row: Any
    node: Any


@dataclass(frozen=True, slots=True)
class Paged:
    """The source of a connection: a page, its items and the total count of the list."""

    page: Page[Any]
    nodes: Sequence[Any]
    place: Place
    count: Callable[[], Awaitable[int]]
    problems: Sequence[Any] = ()  # of a search query

    def edges(self) -> list[Placed]:
        """Return the sources of the edges."""
        return [
            Placed(self.place, row, node)
            for row, node in zip(self.page.rows, self.nodes, strict=True)
        ]

    def cursor(self, nth: int) -> str | None:
        """Return the cursor of an item by its index; None if the page is empty."""
        rows = self.page.rows
        return str(self.place(rows[nth])) if rows else None


@strawberry.enum(description="Which end of a list comes first.")
class OrderDirection(StrEnum):
    ASC = "ASC"
    DESC = "DESC"


@strawberry.type(description="Position of a page.")
class PageInfo(View):
    has_next_page: bool = leaf("More after endCursor.")
    has_previous_page: bool = leaf("More before startCursor.")
    start_cursor: str | None = leaf("Cursor of the first edge.")
    end_cursor: str | None = leaf("Cursor of the last edge.")

    made: ClassVar[Mapping[str, Made]] = {
        "has_next_page": Made((), lambda paged: paged.page.next),
        "has_previous_page": Made((), lambda paged: paged.page.previous),
        "start_cursor": Made((), lambda paged: paged.cursor(0)),
        "end_cursor": Made((), lambda paged: paged.cursor(-1)),
    }


@strawberry.type(description="An item and its place in the list.")
class Edge(View, Generic[Node]):
    cursor: str = leaf("Its place, for after and before.")
    node: Node = leaf("The item.")

    made: ClassVar[Mapping[str, Made]] = {
        "cursor": Made((), lambda placed: str(placed.place(placed.row)))
    }


@strawberry.type(description="A page of a list.")
class Connection(View, Generic[Node]):
    edges: list[Edge[Node]] = leaf("The items with their places.")
    nodes: list[Node] = leaf("The items.")
    page_info: PageInfo = leaf("Position of the page.")

    made: ClassVar[Mapping[str, Made]] = {
        "edges": Viewed((), Paged.edges, Edge, many=True),
        "page_info": Viewed((), lambda paged: paged, PageInfo),
    }

    @field("Items in the whole list; costs nothing unless asked for.")
    async def total_count(self) -> int:
        total: int = await self.row.count()
        return total


async def connected(
    info: Info,
    shape: type[Item],
    page: Page[Any],
    place: Place,
    count: Callable[[], Awaitable[int]],
) -> Connection[Item]:
    """Return the connection of a page of rows that were read with `selected_columns`."""
    return Connection.of(Paged(page, await listed(info, shape, page.rows), place, count))
