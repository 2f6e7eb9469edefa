"""Loading of stored messages and threads: single ones, pages and counts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlmodel import col

from models.errors import Forbidden
from models.mailboxes.tables import Mailbox
from models.messages.keywords import MessageKeyword
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.store.prepared_statements import integer_parameter, is_in_parameter, prepare_cached
from models.store.query_hints import implied_conditions, without_index
from models.users.roles import Role, Scope
from resolvers import pagination
from resolvers.access import (
    can_see_mail_of_others,
    can_see_managed_mail_records,
    is_mailbox_with_visible_records,
    is_own_prepared,
    is_visible_or_managed,
)
from resolvers.context import Context
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.content_access import CONTENT_COLUMNS, withhold_content_or_log_read
from resolvers.messages.filters.filter_conditions import (
    FilterSql,
    build_conditions,
    has_only_flags,
    load_filter_sql,
    load_lookups_of_scoped_filter,
    select_mailbox_ids,
    split_search_words,
)
from resolvers.messages.filters.filter_lookups import (
    ScopedMessageFilter,
    iterate_nested_conditions_requiring_limits,
)
from resolvers.messages.filters.indexed_conditions import (
    required_mailboxes,
    required_parts,
    without_required,
)
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import (
    KEYWORD_SORT_KEY,
    NO_MESSAGE,
    MessageListing,
    is_not_deleted_sql,
    list_conditions,
)
from resolvers.messages.message_orders import (
    SORT_KEYS,
    message_column_names,
    one_mailbox_required,
    select_with_sort_key,
)
from resolvers.messages.unfiltered_pages import load_unfiltered_pages, needs_few_statements
from resolvers.pagination import PageForm, PageScan, read_union
from resolvers.search import index_pages
from resolvers.search.index_query import requires_any_word

COUNTER_COLUMNS = frozenset({"id", "user_id", "message_count", "unseen_count"})


async def load_visible_message_pages(
    ctx: Context, listings: list[MessageListing]
) -> list[Page[ColumnRow]]:
    """Load the pages of these listings, each in reading order."""
    is_own = all(key.user_id == ctx.viewer.user_id for key in listings)
    plain = all(key.conditions.is_empty for key in listings) and (
        is_own or not can_see_mail_of_others(ctx)
    )
    if plain and needs_few_statements(listings):
        return await load_unfiltered_pages(ctx, listings)
    ordered = [message_column_names(key.sort_key) for key in listings]
    columns = frozenset[str]().union(*ordered, *(key.columns for key in listings))
    if (
        len(listings) == 1
        and is_own
        and (index_query := await _word_search_if_index_is_best(ctx, listings[0]))
    ):
        (key,) = listings
        form = PageForm.of_page(key.page_request, columns, is_descending=key.is_descending)
        return [
            await index_pages.read_page_of_matches(
                ctx, index_query, key.page_request, form, key.sort_key
            )
        ]
    if not is_own:
        columns |= {"user_id", "mailbox_id"}
    listings = await narrow_to_required_mailboxes(ctx, listings)
    scans = [
        _page_scan(ctx, key, filter_sql, columns)
        for key, filter_sql in zip(listings, await _load_filters(ctx, listings), strict=True)
    ]
    pages = await pagination.read_pages(ctx, scans)
    if is_own or not (
        ctx.viewer.role is Role.ROOT
        or ctx.viewer.share_visibility.has_shared_mailboxes
        or columns & CONTENT_COLUMNS
    ):
        return pages
    return [
        page
        if key.is_read_logged
        else replace(page, rows=await withhold_content_or_log_read(ctx, page.rows))
        for key, page in zip(listings, pages, strict=True)
    ]


async def narrow_to_required_mailboxes(
    ctx: Context, listings: list[MessageListing]
) -> list[MessageListing]:
    """Replace the mailbox that a filter requires by that of the listing, which has an index.

    A filter that means several mailboxes by one path is kept. A narrowed listing is unchanged.
    """
    mailboxes = {
        index: required[0]
        for index, key in enumerate(listings)
        if not key.is_narrowed
        and key.thread_id is None
        and (required := required_mailboxes(key.conditions))
    }
    if not mailboxes:
        return listings
    selects = [
        select_mailbox_ids([listings[index].user_id], selector)
        for index, selector in mailboxes.items()
    ]
    rows_of_selects = await read_union(ctx, selects)
    narrowed = list(listings)
    for (index, selector), rows in zip(mailboxes.items(), rows_of_selects, strict=True):
        listing = _narrowed_to_mailbox(listings[index], selector, [row.id for row in rows])
        narrowed[index] = replace(listing, is_narrowed=True)
    return narrowed


def _narrowed_to_mailbox(
    listing: MessageListing, selector: MailboxSelector, mailbox_ids: Sequence[int]
) -> MessageListing:
    """Return the listing of one mailbox. Without a matching mailbox, the listing has no message."""
    if not mailbox_ids or (
        listing.mailbox_id is not None and listing.mailbox_id not in mailbox_ids
    ):
        # with its own conditions, since these can be invalid
        return replace(
            listing, conditions=MessageConditions(every=(listing.conditions, NO_MESSAGE))
        )
    if len(mailbox_ids) > 1:
        return listing
    conditions = listing.conditions
    if not any(part.uids or part.seqs for part in required_parts(conditions)):  # these need it
        conditions = without_required(conditions, [("mailbox", selector)])
    return replace(listing, mailbox_id=mailbox_ids[0], conditions=conditions)


def _page_scan(
    ctx: Context, listing: MessageListing, filter_sql: FilterSql, columns: frozenset[str]
) -> PageScan:
    """Return the scan of a page: by keys or words, or along an index in the order of the list."""
    if listing.sort_column is not None:
        return _sorted_page_scan(ctx, listing, filter_sql, columns)
    rows = select(*select_columns(Message, columns))
    sort_key, tested_conditions = listing.sort_key, filter_sql.tested_conditions
    if listing.thread_id is not None or filter_sql.finds_rows_by_key_or_word:
        rows = rows.where(*_listing_conditions(ctx, listing, filter_sql))
        tested_conditions = ()
    elif filter_sql.keyword is not None:
        rows = rows.join(MessageKeyword, col(MessageKeyword.id) == col(Message.id)).where(
            *_keyword_conditions(listing, filter_sql.keyword),
            *_joined_scope_conditions(ctx, listing),
        )
        sort_key = KEYWORD_SORT_KEY
    else:
        rows = rows.where(*_scope_conditions(ctx, listing), *filter_sql.ordered_conditions)
    return PageScan(
        rows,
        listing.page_request,
        sort_key,
        is_descending=listing.is_descending,
        tested_conditions=tested_conditions,
    )


def _sorted_page_scan(
    ctx: Context, listing: MessageListing, filter_sql: FilterSql, columns: frozenset[str]
) -> PageScan:
    """Return the scan of a page in the order of the table of sort keys.

    Without keys or words, an index of the table gives the rows, and the filter is tested on them.
    Raises InvalidInput if the listing is not of one mailbox.
    """
    sort_key, tested_conditions = listing.sort_key, filter_sql.conditions
    rows = select_with_sort_key(columns, sort_key)
    if filter_sql.finds_rows_by_key_or_word:
        rows = rows.where(*_listing_conditions(ctx, listing, filter_sql))
        tested_conditions = ()
    elif listing.mailbox_id is None:
        raise one_mailbox_required()
    else:
        rows = rows.where(
            SORT_KEYS.mailbox_id == listing.mailbox_id, *_joined_scope_conditions(ctx, listing)
        )
    return PageScan(
        rows,
        listing.page_request,
        sort_key,
        is_descending=listing.is_descending,
        tested_conditions=tested_conditions,
    )


def _keyword_conditions(listing: MessageListing, keyword: str) -> list[ColumnElement[bool]]:
    """Build the conditions on the table of keywords: the messages of a list with a keyword."""
    is_of_owner = col(MessageKeyword.user_id) == listing.user_id
    has_keyword = col(MessageKeyword.keyword) == keyword
    if listing.mailbox_id is None:
        return [is_of_owner, has_keyword]
    is_of_mailbox = col(MessageKeyword.mailbox_id) == listing.mailbox_id
    return [is_of_mailbox, has_keyword, implied_conditions(is_of_owner)]


async def _word_search_if_index_is_best(
    ctx: Context, listing: MessageListing
) -> index_pages.WordSearch | None:
    """Build the query of the search index for the viewer's list, if the index is the best way."""
    if listing.conditions.is_empty or listing.sort_column is not None:
        return None
    list(iterate_nested_conditions_requiring_limits(listing.conditions))  # checks the limits
    search_words, statement = split_search_words(listing.conditions)
    is_index_only = has_only_flags(statement)
    if search_words is None or not requires_any_word(search_words):
        return None
    if not is_index_only and ctx.environment.database.dialect == "postgresql":
        return None  # its planner weighs all conditions
    lookups = await load_lookups_of_scoped_filter(
        ctx,
        ScopedMessageFilter(
            listing.conditions, listing.user_id, listing.mailbox_id, listing.thread_id
        ),
    )
    rest = index_pages.RemainingConditions(
        statement, is_index_only, lambda: build_conditions(ctx, statement, lookups)
    )
    listing_key = (listing.user_id, listing.mailbox_id, listing.thread_id)
    return index_pages.WordSearch(*listing_key, search_words, lookups.unindexed, rest)


async def _load_filters(ctx: Context, listings: Sequence[MessageListing]) -> list[FilterSql]:
    scopes = [
        ScopedMessageFilter(key.conditions, key.user_id, key.mailbox_id, key.thread_id)
        for key in listings
    ]
    return await ctx.load_many(load_filter_sql, scopes)


def _scope_conditions(ctx: Context, listing: MessageListing) -> list[ColumnElement[bool]]:
    """Build the conditions of the user, mailbox and thread of a list."""
    conditions = list_conditions(listing.mailbox_id, listing.thread_id)
    if listing.mailbox_id is None and listing.thread_id is None:
        is_of_owner = col(Message.user_id) == listing.user_id
        return [is_visible_or_managed(ctx, Message), is_of_owner, *conditions]
    return [*conditions, *_owner_conditions(ctx, listing)]


def _joined_scope_conditions(ctx: Context, listing: MessageListing) -> list[ColumnElement[bool]]:
    """Build the same conditions for messages that are joined with other rows of the list."""
    conditions = list_conditions(listing.mailbox_id, listing.thread_id)
    return [implied_conditions(*conditions), *_owner_conditions(ctx, listing)]


def _owner_conditions(ctx: Context, listing: MessageListing) -> list[ColumnElement[bool]]:
    """Build the conditions that all messages of a mailbox or thread of the user meet, or none."""
    is_visible = is_visible_or_managed(ctx, Message)
    is_of_owner = col(Message.user_id) == listing.user_id
    if can_see_managed_mail_records(ctx):
        # it has a subquery of all managed users, which PostgreSQL would read if it were implied
        return [without_index(is_visible), implied_conditions(is_of_owner)]
    return [implied_conditions(is_visible, is_of_owner)]


def _listing_conditions(
    ctx: Context, listing: MessageListing, filter_sql: FilterSql
) -> list[ColumnElement[bool]]:
    if listing.thread_id is not None:  # it has fewer messages than a keyword
        filter_sql = replace(filter_sql, keyword=None)
    return filter_sql.combine_with(ctx, _scope_conditions(ctx, listing))


async def count_visible_messages_of_listings(
    ctx: Context, listings: list[MessageListing]
) -> list[int]:
    """Count the messages of these listings.

    All messages, and all unseen ones, are counted by the counters of the mailboxes.
    """
    listings = await narrow_to_required_mailboxes(ctx, listings)
    counts = await _read_counters(ctx, [key for key in listings if key.counter_name])
    filtered_keys = [key for key in listings if key not in counts]
    if filtered_keys:
        scans = [
            _count_select(ctx, key, filter_sql)
            for key, filter_sql in zip(
                filtered_keys, await _load_filters(ctx, filtered_keys), strict=True
            )
        ]
        rows = await read_union(ctx, scans)
        counts |= {key: row.many for key, (row,) in zip(filtered_keys, rows, strict=True)}
    return [counts[key] for key in listings]


def _count_select(
    ctx: Context, listing: MessageListing, filter_sql: FilterSql
) -> Select[*tuple[Any, ...]]:
    """Select the number of messages. The rows of a keyword are counted without the messages."""
    has_keyword_only = filter_sql.keyword is not None and not (
        filter_sql.tested_conditions or listing.thread_id
    )
    table, conditions = (
        (MessageKeyword, _keyword_conditions(listing, filter_sql.keyword or ""))
        if has_keyword_only and listing.user_id == ctx.viewer.user_id
        else (Message, _listing_conditions(ctx, listing, filter_sql))
    )
    return select(func.count().label("many")).select_from(table).where(*conditions)


async def _read_counters(
    ctx: Context, listings: Sequence[MessageListing]
) -> dict[MessageListing, int]:
    """Add up the counters of the visible mailboxes of each listing."""
    if not listings:
        return {}
    rows = await _read_counter_rows(ctx, listings)
    return {
        key: sum(
            getattr(row, key.counter_name)
            for row in rows
            if (row.user_id == key.user_id if key.mailbox_id is None else row.id == key.mailbox_id)
        )
        for key in listings
    }


async def _read_counter_rows(
    ctx: Context, listings: Sequence[MessageListing]
) -> Sequence[ColumnRow]:
    """Read the visible mailboxes of these listings: ID, owner and counters."""
    mailbox_ids = {key.mailbox_id for key in listings if key.mailbox_id is not None}
    user_ids = {key.user_id for key in listings if key.mailbox_id is None}
    if not can_see_mail_of_others(ctx):
        query = _own_counters_query(
            ctx.environment.database.dialect, reads_all=ctx.viewer.user_id in user_ids
        )
        return await ctx.read_prepared(query, mailboxes=sorted(mailbox_ids))
    return await ctx.read(
        select(*select_columns(Mailbox, COUNTER_COLUMNS)).where(
            or_(col(Mailbox.id).in_(mailbox_ids), col(Mailbox.user_id).in_(user_ids)),
            is_mailbox_with_visible_records(ctx),
        )
    )


@prepare_cached
def _own_counters_query(dialect: str, *, reads_all: bool) -> Select[*tuple[Any, ...]]:
    """Select the counters of the viewer's mailboxes: of all, or by the parameter `mailboxes`."""
    rows = select(*select_columns(Mailbox, COUNTER_COLUMNS)).where(is_own_prepared(Mailbox))
    return rows if reads_all else rows.where(is_in_parameter(dialect, col(Mailbox.id), "mailboxes"))


def require_can_change_messages(ctx: Context) -> None:
    """Raise Forbidden if the credential can't change messages."""
    ctx.viewer.require_scope(Scope.MAIL)
    if ctx.viewer.read_only:
        raise Forbidden("The credential is read-only.", requires="a credential that writes")


async def load_visible_by_ids(ctx: Context, message_ids: list[int]) -> list[ColumnRow | None]:
    """Load the messages with these IDs, in this order. None if the viewer can't see one.

    Messages of other users have only the record: `resolvers/messages/content_access.py`.
    """
    if len(message_ids) == 1 and not can_see_mail_of_others(ctx):
        return [next(iter(await ctx.read_prepared(_own_message_query(), id=message_ids[0])), None)]
    statement = select(*select_columns(Message)).where(
        is_visible_or_managed(ctx, Message), is_not_deleted_sql(), col(Message.id).in_(message_ids)
    )
    rows_by_id = {
        row.id: row for row in await withhold_content_or_log_read(ctx, await ctx.read(statement))
    }
    return [rows_by_id.get(key) for key in message_ids]


@prepare_cached
def _own_message_query() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Message)).where(
        is_own_prepared(Message), is_not_deleted_sql(), col(Message.id) == integer_parameter("id")
    )


async def find_message_id_by_uid(ctx: Context, mailbox_id: int, uid: int) -> int | None:
    """Return the ID of a message by mailbox and UID. None if the viewer can't see it."""
    statement = select(col(Message.id)).where(
        col(Message.mailbox_id) == mailbox_id,
        col(Message.uid) == uid,
        is_visible_or_managed(ctx, Message),
    )
    row = next(iter(await ctx.read(statement)), None)
    return None if row is None else int(row.id)
