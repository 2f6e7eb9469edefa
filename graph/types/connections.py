"""Relay connections of keyset pages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.row_mapping import Item, objects_from_rows_with_links
from models.store.keyset_pages import USUAL_PAGE_SIZES, Cursor, Page, PageRequest, PageSizes

Node = TypeVar("Node")
CursorOfRow = Callable[[Any], Cursor]


class PageArguments(NamedTuple):
    """The arguments that select a page of a list."""

    first: Any
    after: Any
    last: Any
    before: Any


def page_request(
    ordering: str, *page_arguments: Any, sizes: PageSizes = USUAL_PAGE_SIZES
) -> PageRequest:
    """Return the page request of the arguments first, after, last and before.

    Raises InvalidInput if they are inconsistent or a cursor is malformed.
    """
    return PageRequest.from_arguments(
        ordering,
        *(None if value is strawberry.UNSET else value for value in page_arguments),
        sizes=sizes,
    )


class EdgeSource(NamedTuple):
    """An item of a page with its row and the function that returns its cursor."""

    cursor_of_row: CursorOfRow
    row: Any
    node: Any


@dataclass(frozen=True, slots=True)
class ConnectionSource:
    """The source of a connection: a page, its items and the total count of the list."""

    page: Page[Any]
    nodes: Sequence[Any]
    cursor_of_row: CursorOfRow
    load_total_count: Callable[[], Awaitable[int]]
    search_errors: Sequence[Any] = ()  # of a search query

    def edge_sources(self) -> list[EdgeSource]:
        """Return the sources of the edges."""
        return [
            EdgeSource(self.cursor_of_row, row, node)
            for row, node in zip(self.page.rows, self.nodes, strict=True)
        ]

    def cursor_at(self, index: int, search_cursor: Cursor | None) -> str | None:
        """Return `search_cursor`, else the cursor of an item by its index; None without items."""
        if search_cursor is not None:
            return str(search_cursor)
        rows = self.page.rows
        return str(self.cursor_of_row(rows[index])) if rows else None

    def start_cursor(self) -> str | None:
        """Return the cursor that the page before this one is read with."""
        return self.cursor_at(0, self.page.search_start_cursor)

    def end_cursor(self) -> str | None:
        """Return the cursor that the page after this one is read with."""
        return self.cursor_at(-1, self.page.search_end_cursor)


@strawberry.type(description="Cursors of a page of a list, and whether other pages follow.")
class PageInfo(View):
    has_next_page: bool = attribute_field(
        "True if items follow the page. A request with `last` does not check this: the value is "
        "true if it has `before`, else false."
    )
    has_previous_page: bool = attribute_field(
        "True if items precede the page. A request without `last` does not check this: the value "
        "is true if it has `after`, else false."
    )
    start_cursor: str | None = attribute_field(
        "Cursor of the first item. If a search with `last` stopped at its row limit: the cursor "
        "of that place, also for an empty page. Null: the page is empty, and the search was "
        "complete."
    )
    end_cursor: str | None = attribute_field(
        "Cursor of the last item. If a search without `last` stopped at its row limit: the cursor "
        "of that place, also for an empty page. Null: the page is empty, and the search was "
        "complete."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "has_next_page": DerivedField((), lambda paged: paged.page.has_next),
        "has_previous_page": DerivedField((), lambda paged: paged.page.has_previous),
        "start_cursor": DerivedField((), ConnectionSource.start_cursor),
        "end_cursor": DerivedField((), ConnectionSource.end_cursor),
    }


@strawberry.type(description="Item of a page with its cursor.")
class Edge(View, Generic[Node]):
    cursor: str = attribute_field("Cursor of the item, for `after` and `before`.")
    node: Node = attribute_field("Object of this edge: an item of the list.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "cursor": DerivedField((), lambda placed: str(placed.cursor_of_row(placed.row)))
    }


@strawberry.type(description="Page of a list (Relay connection).")
class Connection(View, Generic[Node]):
    edges: list[Edge[Node]] = attribute_field("Items of the page with their cursors.")
    nodes: list[Node] = attribute_field("Items of the page.")
    page_info: PageInfo = attribute_field(
        "Cursors of the page, and whether other items precede or follow it."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "edges": NestedViewField((), ConnectionSource.edge_sources, Edge, is_list=True),
        "page_info": NestedViewField((), lambda paged: paged, PageInfo),
    }

    @field(
        "Number of items on all pages of the list, with its filter applied. Some long lists are "
        "counted only up to a limit. The description of such a list names its limit. The items are "
        "counted only if the field is selected."
    )
    async def total_count(self) -> int:
        total: int = await self.row.load_total_count()
        return total


async def connection_of_page(
    info: Info,
    view: type[Item],
    page: Page[Any],
    cursor_of_row: CursorOfRow,
    load_total_count: Callable[[], Awaitable[int]],
) -> Connection[Item]:
    """Return the connection of a page of rows that were read with `selected_columns`."""
    return Connection.from_row(
        ConnectionSource(
            page,
            await objects_from_rows_with_links(info, view, page.rows),
            cursor_of_row,
            load_total_count,
        )
    )
