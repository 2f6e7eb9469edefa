"""Pages of messages without a filter, such as an inbox, read by prepared statements.

One statement reads all lists that differ only in their mailbox or thread. Its text doesn't depend
on the number of lists.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, select, true
from sqlmodel import col

from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.store.prepared_statements import (
    integer_parameter,
    prepare_cached,
    raw_values,
    rows_at,
    rows_from_parameter,
)
from resolvers import pagination
from resolvers.context import Context
from resolvers.messages.listing import (
    SORT_KEY,
    THREAD_SORT_KEY,
    MessageListing,
    own_list_conditions,
)
from resolvers.messages.message_orders import (
    message_column_names,
    one_mailbox_required,
    unfiltered_sorted_page_query,
)
from resolvers.pagination import PageForm

MAX_PREPARED_ROWS = 1000  # of one statement: more are read in a thread
LISTS = "lists"  # the parameter with the mailboxes or threads


def needs_few_statements(listings: Sequence[MessageListing]) -> bool:
    """Return whether at most MAX_SEPARATE_PAGES of these lists need a statement of their own."""
    separate = [key for key in listings if not _is_readable_with_others(key)]
    return len(separate) <= pagination.MAX_SEPARATE_PAGES


def _is_readable_with_others(listing: MessageListing) -> bool:
    """Return whether one statement can read this list and those of other mailboxes or threads."""
    return listing.sort_column is None and (listing.mailbox_id is None) != (
        listing.thread_id is None
    )


async def load_unfiltered_pages(
    ctx: Context, listings: Sequence[MessageListing]
) -> list[Page[ColumnRow]]:
    """Load pages without conditions, in this order. They are empty for other users' messages."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(listings):
        shared_key = (key.page_request, key.thread_id is None)
        groups[shared_key if _is_readable_with_others(key) else index].append(index)
    pages: dict[int, Page[ColumnRow]] = {}
    for indexes in groups.values():
        group = [listings[index] for index in indexes]
        found = (
            await _load_pages_of_lists(ctx, group)
            if len(group) > 1
            else [await _load_page_if_own(ctx, group[0])]
        )
        pages |= zip(indexes, found, strict=True)
    return [pages[index] for index in range(len(listings))]


async def _load_page_if_own(ctx: Context, listing: MessageListing) -> Page[ColumnRow]:
    if listing.user_id != ctx.viewer.user_id:
        return listing.page_request.page_from_rows([])
    columns = listing.columns | message_column_names(listing.sort_key)
    form = PageForm.of_page(listing.page_request, columns, is_descending=listing.is_descending)
    of_mailbox, of_thread = listing.mailbox_id is not None, listing.thread_id is not None
    if listing.sort_column is None:
        query = _page_query(form, of_mailbox=of_mailbox, of_thread=of_thread)
    elif of_mailbox:
        query = unfiltered_sorted_page_query(form, listing.sort_column)
    else:
        raise one_mailbox_required()
    rows = await ctx.read_prepared(
        query,
        mailbox=listing.mailbox_id,
        thread=listing.thread_id,
        **pagination.page_parameters(listing.page_request, listing.sort_key),
    )
    return pagination.page_from_rows(rows, listing.page_request)


async def _load_pages_of_lists(
    ctx: Context, listings: Sequence[MessageListing]
) -> list[Page[ColumnRow]]:
    """Load the pages of lists that differ only in columns, owner, and mailbox or thread."""
    request, sort_key = listings[0].page_request, listings[0].sort_key
    of_thread = listings[0].thread_id is not None
    list_column = "thread_id" if of_thread else "mailbox_id"
    columns = frozenset({list_column}).union(
        message_column_names(sort_key), *(key.columns for key in listings)
    )
    form = PageForm.of_page(request, columns, is_descending=listings[0].is_descending)
    query = _pages_query(ctx.environment.database.dialect, form, of_thread=of_thread)
    ids = [getattr(key, list_column) for key in listings]
    own_ids = {
        list_id
        for list_id, key in zip(ids, listings, strict=True)
        if key.user_id == ctx.viewer.user_id
    }
    parameters: dict[str, Any] = {
        LISTS: [[list_id] for list_id in sorted(own_ids)],
        **pagination.page_parameters(request, sort_key),
    }
    if len(own_ids) * (request.count + 1) <= MAX_PREPARED_ROWS:
        rows = await ctx.read_prepared(query, **parameters)
    else:
        rows = await ctx.read(query.statement, {**parameters, "viewer": ctx.viewer.user_id})
    indexes: defaultdict[int, list[int]] = defaultdict(list)
    for index, list_id in enumerate(raw_values(rows, list_column)):
        indexes[list_id].append(index)
    return [pagination.page_from_rows(rows_at(rows, indexes[key]), request) for key in ids]


@prepare_cached
def _page_query(
    page_form: PageForm, *, of_mailbox: bool, of_thread: bool
) -> Select[*tuple[Any, ...]]:
    rows = _select_of_list(
        page_form.columns,
        mailbox_id=integer_parameter("mailbox") if of_mailbox else None,
        thread_id=integer_parameter("thread") if of_thread else None,
    )
    return pagination.page_select(rows, page_form, THREAD_SORT_KEY if of_thread else SORT_KEY)


@prepare_cached
def _pages_query(dialect: str, page_form: PageForm, *, of_thread: bool) -> Select[*tuple[Any, ...]]:
    """Select a page of each list, all in the order of the scan.

    SQLite has no LATERAL, but evaluates an IN with the LIMIT of a subquery for each list.
    """
    lists = rows_from_parameter(dialect, LISTS, ["id"])
    list_ids = {"thread_id" if of_thread else "mailbox_id": lists.c.id}
    sort_key: tuple[Any, Any] = THREAD_SORT_KEY if of_thread else SORT_KEY

    def select_page(columns: frozenset[str]) -> Select[*tuple[Any, ...]]:
        rows = _select_of_list(columns, **list_ids)
        return pagination.page_select(rows, page_form, sort_key).correlate(lists)

    if dialect == "sqlite":
        page_ids = col(Message.id).in_(select_page(frozenset({"id"})))
        columns: dict[str, Any] = {
            column.key: column for column in select_columns(Message, page_form.columns)
        }
        rows = select(*columns.values()).select_from(lists).join(Message, page_ids)
    else:
        page = select_page(page_form.columns).lateral("page")
        columns = dict(page.c)
        rows = select(*columns.values()).select_from(lists).join(page, true())
    return rows.order_by(*page_form.scan_order(columns[column.key] for column in sort_key))


def _select_of_list(
    columns: frozenset[str],
    *,
    mailbox_id: ColumnElement[int] | None = None,
    thread_id: ColumnElement[int] | None = None,
) -> Select[*tuple[Any, ...]]:
    """Select the viewer's messages of a mailbox or thread, or all that are not deleted."""
    rows = select(*select_columns(Message, columns))
    return rows.where(*own_list_conditions(mailbox_id, thread_id))
