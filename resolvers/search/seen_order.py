"""Order messages by the flag Seen: the unseen messages first, or the seen ones first.

Such a list is two lists by arrival, one after the other. So it needs no index of its own, which
each change of the flag would have to write: an index has the unseen messages, and the seen ones
are searched along the index by arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from models.store.columns import ColumnRow
from models.store.keyset_pages import EPOCH, Cursor, Page, PageRequest
from resolvers.context import Context
from resolvers.messages import loaders as message_loaders
from resolvers.messages.listing import MessageListing
from resolvers.messages.message_orders import NEWEST_FIRST, is_descending_ordering
from resolvers.search import search_scope

COLUMNS = frozenset({"seen"})  # which a cursor needs


@dataclass(frozen=True, slots=True)
class SeenPosition:
    """A position in a list by the flag Seen: its group, and the cursor in the group."""

    seen: bool
    cursor: Cursor

    @classmethod
    def of_page_request(cls, page_request: PageRequest) -> "SeenPosition | None":
        """Return the position of a page's cursor; None without one.

        Raises InvalidInput if the cursor has no such position.
        """
        value = page_request.cursor_sort_value(int)
        if value is None or page_request.cursor is None:
            return None
        try:
            at = EPOCH + timedelta(microseconds=value >> 1)
        except OverflowError as problem:
            raise page_request.cursor_refusal() from problem
        return cls(bool(value & 1), Cursor(NEWEST_FIRST, at, page_request.cursor.id))


def cursor_values(listing: MessageListing, row: ColumnRow) -> tuple[int, int]:
    """Return the values of a row in the cursors of a list by the flag Seen."""
    arrival_column, _ = listing.sort_key
    return _sort_value(getattr(row, arrival_column.key), seen=row.seen), row.id


def _sort_value(at: datetime, *, seen: bool) -> int:
    """Return the time in microseconds and the flag as one number."""
    return (at - EPOCH) // timedelta(microseconds=1) << 1 | seen


async def read_page_by_seen(
    ctx: Context, listings: Sequence[MessageListing], page_request: PageRequest
) -> Page[ColumnRow]:
    """Return one page of these listings, which differ in their user only.

    A message whose flag changes between two pages can be missing, or come twice. Raises
    InvalidInput for a cursor of another order.
    """
    position = SeenPosition.of_page_request(page_request)
    # of two groups, the one that is read first
    starts_with_seen = is_descending_ordering(page_request.ordering) is not page_request.is_backward
    groups = [starts_with_seen, not starts_with_seen]
    if position is not None and position.seen is not starts_with_seen:
        groups = groups[1:]
    rows: list[ColumnRow] = []
    for seen in groups:
        cursor = position.cursor if position is not None and position.seen is seen else None
        request = replace(
            page_request,
            ordering=NEWEST_FIRST,
            count=page_request.count - len(rows),
            cursor=cursor,
        )
        page = await _read_group(ctx, listings, request, seen=seen)
        rows = [*page.rows, *rows] if page_request.is_backward else [*rows, *page.rows]
        has_more = page.has_previous if page_request.is_backward else page.has_next
        if has_more:
            break
    return _page_of_group(page_request, rows, page, seen=seen, has_more=has_more)


async def _read_group(
    ctx: Context, listings: Sequence[MessageListing], page_request: PageRequest, *, seen: bool
) -> Page[ColumnRow]:
    """Read a page of the seen messages of these listings, or of the unseen ones."""
    if listings[0].conditions.seen is (not seen):
        return Page([], has_next=False, has_previous=False)
    conditions = listings[0].conditions._replace(seen=seen)
    columns = listings[0].columns | COLUMNS
    group = [
        replace(listing, page_request=page_request, conditions=conditions, columns=columns)
        for listing in listings
    ]
    if len(group) == 1:
        return await ctx.load(message_loaders.load_visible_message_pages, group[0])
    return await search_scope.read_and_merge_pages(ctx, group)


def _page_of_group(
    page_request: PageRequest,
    rows: Sequence[ColumnRow],
    last_page: Page[ColumnRow],
    *,
    seen: bool,
    has_more: bool,
) -> Page[ColumnRow]:
    """Return the page of these rows, with the end of the search of the last group."""
    page = page_request.page_from_rows(rows, has_more=has_more)
    end = last_page.search_start_cursor or last_page.search_end_cursor
    if end is None or not isinstance(end.sort_value, datetime):
        return page
    cursor = Cursor(page_request.ordering, _sort_value(end.sort_value, seen=seen), end.id)
    return page_request.page_with_search_end(page, cursor)
