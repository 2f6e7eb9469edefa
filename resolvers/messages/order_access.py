"""Access to the orders of message lists: which lists have them, and who can use them."""

from collections.abc import Sequence

from models.users.roles import Role
from resolvers.access import can_see_managed_mail_records
from resolvers.context import Context
from resolvers.messages.content_access import content_refusal, load_content_readability
from resolvers.messages.filters.indexed_conditions import required_mailboxes
from resolvers.messages.loaders import MessageListing
from resolvers.messages.message_orders import CONTENT_SORT_COLUMNS, one_mailbox_required


async def require_sortable(ctx: Context, listings: Sequence[MessageListing]) -> None:
    """Raise InvalidInput if these listings of one list can't be sorted so.

    The listings differ in their user only. An order of the table of sort keys requires one mailbox,
    and a cursor with a value of its sort column.

    Raises Forbidden for an order by content of a mailbox whose content the viewer can't read: the
    order and the cursors show it.
    """
    if not listings or listings[0].sort_column is None:
        return
    listing, sort_column = listings[0], listings[0].sort_column
    is_of_one_mailbox = listing.mailbox_id is not None or required_mailboxes(listing.conditions)
    if len(listings) > 1 or listing.thread_id is not None or not is_of_one_mailbox:
        raise one_mailbox_required()
    listing.page_request.cursor_sort_value(sort_column.value_type)
    if (
        sort_column.name in CONTENT_SORT_COLUMNS
        and listing.user_id != ctx.viewer.user_id
        and ctx.viewer.role is not Role.ROOT
        and can_see_managed_mail_records(ctx)
        and (
            listing.mailbox_id is None
            or not await ctx.load(load_content_readability, listing.mailbox_id)
        )
    ):
        raise content_refusal()
