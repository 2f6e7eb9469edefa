"""Search the mail of one user or of many."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import Forbidden, InvalidInput, LimitReached
from models.mailboxes.tables import Mailbox
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint
from resolvers.access import can_see_managed_mail_records, is_visible_or_managed, require_user_id
from resolvers.context import Context
from resolvers.mailboxes.loaders import SELECTOR_FIELDS, MailboxSelector
from resolvers.messages import loaders as message_loaders
from resolvers.messages.filters.filter_lookups import iterate_parts
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.loaders import MessageListing
from resolvers.users import selection
from resolvers.users.selection import UserSelector

MAX_USERS = 100  # accounts of one search

KnownMailboxes = frozenset[tuple[str, Any]]  # a selector field of a mailbox, and its value


async def load_searched_user_ids(ctx: Context, user_selector: UserSelector) -> list[int]:
    """Return the IDs of the users to search: the viewer, or selected users.

    Raises LimitReached for more than 100 users, Forbidden if the viewer may not act as them.
    """
    if not user_selector.is_given:
        return [require_user_id(ctx)]
    found = [row.id for row in await selection.load_selected_users(ctx, user_selector)]
    if len(found) > MAX_USERS:
        error_text = f"at most {MAX_USERS} accounts at once: narrow the selection"
        raise LimitReached(error_text, limit=MAX_USERS, used=len(found), path=["users"])
    if set(found) - {ctx.viewer.user_id} and not can_see_managed_mail_records(ctx):
        error_text = "Only administrators who may act as a user see records of the user's mail"
        raise Forbidden(error_text, requires="IMPERSONATE", path=["users"])
    return found


async def validate_mailboxes_of_search(
    ctx: Context, conditions: MessageConditions, user_ids: Sequence[int]
) -> None:
    """Check the mailboxes that a search names. Raises Invalid if no user has one of them."""
    if _mailbox_selectors(conditions):
        require_known_mailboxes(conditions, await load_known_mailboxes(ctx, user_ids))


async def load_known_mailboxes(ctx: Context, user_ids: Sequence[int]) -> KnownMailboxes:
    """Load the values by which a search can select the mailboxes of these users."""
    statement = select(*select_columns(Mailbox, set(SELECTOR_FIELDS)))
    rows = await ctx.read(
        statement.where(is_visible_or_managed(ctx, Mailbox), col(Mailbox.user_id).in_(user_ids))
    )
    return frozenset(
        (by, _fold_if_text(getattr(row, by))) for row in rows for by in SELECTOR_FIELDS
    )


def require_known_mailboxes(conditions: MessageConditions, known: KnownMailboxes) -> None:
    """Raise Invalid if a search names a mailbox that is not known."""
    for name in _mailbox_selectors(conditions):
        given = [
            (by, _fold_if_text(getattr(name, by)))
            for by in SELECTOR_FIELDS
            if getattr(name, by) is not None
        ]
        if known.isdisjoint(given):
            error_text = f"There is no mailbox {str(name)[:80]!r}"
            if name.id is not None:
                error_text = "There is no mailbox with this ID"
            raise InvalidInput(error_text, constraint=ValidationConstraint.MAILBOX, path=["query"])


def _mailbox_selectors(conditions: MessageConditions) -> set[MailboxSelector]:
    """Return the mailbox selectors of a filter."""
    return {
        name
        for one in iterate_parts(conditions)
        for name in (*(one.mailboxes or ()), *((one.mailbox,) if one.mailbox else ()))
    }


async def read_combined_page(ctx: Context, listings: Sequence[MessageListing]) -> Page[ColumnRow]:
    """Return one page of the merged listings, which must request the same page."""
    ask, falling = listings[0].page_request, listings[0].is_newest_first
    found = await ctx.load_many(message_loaders.load_pages, listings)
    every = (row for page in found for row in page.rows)
    rows = sorted(every, key=message_loaders.cursor_values, reverse=falling)
    return ask.page_from_rows(
        rows, has_more=any(p.has_previous if ask.is_backward else p.has_next for p in found)
    )


def _fold_if_text(value: Any) -> Any:
    return fold_text(value) if type(value) is str else value  # an enum is a str, too
