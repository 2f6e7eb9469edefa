"""Search the mail of one user or of many."""

import operator
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import Forbidden, InvalidInput, LimitReached
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Cursor, Page
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint
from resolvers.access import can_see_managed_mail_records, is_visible_or_managed, require_user_id
from resolvers.context import Context
from resolvers.mailboxes.loaders import SELECTOR_FIELDS, MailboxSelector
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import iterate_nested_conditions_requiring_limits
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import MessageListing, cursor_values
from resolvers.users import selection
from resolvers.users.selection import UserSelector

MAX_USERS = 100  # accounts of one search

KnownMailboxes = frozenset[tuple[str, Any]]  # a selector field of a mailbox, and its value


async def require_searchable_user_ids(ctx: Context, user_selector: UserSelector) -> list[int]:
    """Return the IDs of the users to search: the viewer, or selected users.

    Raises LimitReached for more than 100 users, Forbidden if the viewer may not act as them.
    """
    if not user_selector.is_given:
        return [require_user_id(ctx)]
    user_ids = [row.id for row in await selection.require_selected_users(ctx, user_selector)]
    if len(user_ids) > MAX_USERS:
        error_text = f"At most {MAX_USERS} accounts can be searched at once: narrow the selection."
        raise LimitReached(error_text, limit=MAX_USERS, used=len(user_ids), path=["users"])
    if set(user_ids) - {ctx.viewer.user_id} and not can_see_managed_mail_records(ctx):
        error_text = "Only administrators who may act as a user see records of the user's mail."
        raise Forbidden(error_text, requires="IMPERSONATE", path=["users"])
    return user_ids


async def validate_mailboxes_of_search(
    ctx: Context, conditions: MessageConditions, user_ids: Sequence[int], *, path: Sequence[str]
) -> None:
    """Check the mailboxes that a search names.

    Raises InvalidInput if no user has one of them. `path` is that of the search in the input.
    """
    if _mailbox_selectors(conditions):
        known_mailboxes = await load_known_mailboxes(ctx, user_ids)
        require_known_mailboxes(conditions, known_mailboxes, path=path)


async def load_known_mailboxes(ctx: Context, user_ids: Sequence[int]) -> KnownMailboxes:
    """Load the values by which a search can select the mailboxes of these users."""
    statement = select(*select_columns(Mailbox, set(SELECTOR_FIELDS)))
    rows = await ctx.read(
        statement.where(is_visible_or_managed(ctx, Mailbox), col(Mailbox.user_id).in_(user_ids))
    )
    return frozenset(
        (field_name, _fold_if_text(getattr(row, field_name)))
        for row in rows
        for field_name in SELECTOR_FIELDS
    )


def require_known_mailboxes(
    conditions: MessageConditions,
    known_mailboxes: KnownMailboxes,
    *,
    path: Sequence[str] = ("query",),
) -> None:
    """Raise InvalidInput if a search names a mailbox that is not known."""
    for name in _mailbox_selectors(conditions):
        given_keys = [
            (field_name, _fold_if_text(getattr(name, field_name)))
            for field_name in SELECTOR_FIELDS
            if getattr(name, field_name) is not None
        ]
        if known_mailboxes.isdisjoint(given_keys):
            error_text = f"Mailbox not found: {str(name)[:80]}."
            if name.id is not None:
                error_text = "Mailbox not found."
            raise InvalidInput(error_text, constraint=ValidationConstraint.MAILBOX, path=path)


def _mailbox_selectors(conditions: MessageConditions) -> set[MailboxSelector]:
    """Return the mailbox selectors of a filter."""
    return {
        name
        for condition in iterate_nested_conditions_requiring_limits(conditions)
        for name in (
            *(condition.mailboxes or ()),
            *((condition.mailbox,) if condition.mailbox else ()),
        )
    }


async def read_and_merge_pages(ctx: Context, listings: Sequence[MessageListing]) -> Page[ColumnRow]:
    """Return one page of the merged listings, which must request the same page."""
    ask, falling = listings[0].page_request, listings[0].is_descending
    pages = await ctx.load_many(message_loaders.load_visible_message_pages, listings)
    every = (row for page in pages for row in page.rows)
    rows = sorted(every, key=cursor_values, reverse=falling)
    has_more = any(p.has_previous if ask.is_backward else p.has_next for p in pages)
    end = _first_search_end(pages, is_ascending=ask.is_backward is falling)
    if end is None:
        return ask.page_from_rows(rows, has_more=has_more)
    # Behind the end there can be messages of the other account that come first.
    is_searched = operator.ge if ask.is_backward is not falling else operator.le
    end_values = (end.sort_value, end.id)
    rows = [row for row in rows if is_searched(cursor_values(row), end_values)]
    page = ask.page_from_rows(rows, has_more=True)
    if len(rows) >= ask.count:  # an account returns no more rows: others can follow the last one
        return page
    return ask.page_with_search_end(page, end)


def _first_search_end(pages: Sequence[Page[ColumnRow]], *, is_ascending: bool) -> Cursor | None:
    """Return the first place at which the search of a page ended; None if all were searched."""
    cursors = [
        cursor for page in pages if (cursor := page.search_start_cursor or page.search_end_cursor)
    ]
    pick = min if is_ascending else max
    return pick(cursors, key=lambda cursor: (cursor.sort_value, cursor.id)) if cursors else None


def _fold_if_text(value: Any) -> Any:
    return fold_text(value) if type(value) is str else value  # an enum is a str, too
