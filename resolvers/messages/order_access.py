"""Access to the orders of message lists: which lists have them, and who can use them."""

from dataclasses import replace

from resolvers.access import can_see_managed_mail_records
from resolvers.context import Context
from resolvers.messages.content_access import (
    load_content_readability,
    require_root_and_log_reads,
)
from resolvers.messages.filters.indexed_conditions import required_mailboxes
from resolvers.messages.listing import MessageListing
from resolvers.messages.loaders import narrow_to_required_mailboxes
from resolvers.messages.message_orders import CONTENT_SORT_COLUMNS, one_mailbox_required


async def require_sortable(ctx: Context, listings: list[MessageListing]) -> list[MessageListing]:
    """Return these listings of one list if they can be sorted so, else raise InvalidInput.

    The listings differ in their user only. An order of the table of sort keys requires one mailbox,
    and a cursor with a value of its sort column. A listing that had to be narrowed to its mailbox
    for the check is returned narrowed.

    Raises Forbidden for an order by content of a mailbox whose content the viewer can't read: the
    order and the cursors show it.
    """
    if not listings or listings[0].sort_column is None:
        return listings
    listing, sort_column = listings[0], listings[0].sort_column
    is_of_one_mailbox = listing.mailbox_id is not None or required_mailboxes(listing.conditions)
    if len(listings) > 1 or listing.thread_id is not None or not is_of_one_mailbox:
        raise one_mailbox_required()
    listing.page_request.cursor_sort_value(sort_column.value_type)
    if sort_column.name in CONTENT_SORT_COLUMNS and listing.user_id != ctx.viewer.user_id:
        return [await _require_readable_content_or_log_read(ctx, listing)]
    return listings


async def _require_readable_content_or_log_read(
    ctx: Context, listing: MessageListing
) -> MessageListing:
    """Return the narrowed listing. Raises Forbidden if the viewer can't read the content.

    For ROOT the read is logged, since a page without rows can have a cursor with a subject.
    """
    if not can_see_managed_mail_records(ctx):  # then the viewer sees only shared mailboxes
        return listing
    (narrowed,) = await narrow_to_required_mailboxes(ctx, [listing])
    if narrowed.mailbox_id is not None and await ctx.load(
        load_content_readability, narrowed.mailbox_id
    ):
        return narrowed
    await require_root_and_log_reads(ctx, {listing.user_id})
    return replace(narrowed, is_read_logged=True)
