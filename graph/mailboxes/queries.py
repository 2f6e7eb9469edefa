"""Lists of the mailboxes of one user and of several users, and totals of mailboxes."""

from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox, MailboxTotals
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import MANAGED
from graph.types.references import UserSelection, optional_tuple, user_selector_from_selection
from graph.types.row_mapping import selected_columns
from graph.types.scalars import BigInt, ByteSize
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import AdminPermission, Scope
from resolvers.mailboxes import listing as mailbox_listing
from resolvers.mailboxes.listing import MailboxConditions


@strawberry.input(description="Conditions on mailboxes. All of them must hold.")
class MailboxFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"patterns"})

    patterns: list[str] | None = attribute_field(
        "Returns only mailboxes whose path matches one of these patterns: `*` matches any "
        "characters, `%` any characters except `/`. Case is significant, except in "
        "INBOX. At most 20 patterns of 1,000 characters. An empty list returns no "
        "mailbox. Default: all paths.",
        default=UNSET,
    )
    has_special_use: bool | None = attribute_field(
        "True returns only mailboxes with a special use (RFC 6154), also INBOX. False: with and "
        "without one. Default: false.",
        default=UNSET,
    )
    subscribed: bool | None = attribute_field(
        "True returns only mailboxes that their owner subscribes to, false only the others. "
        "Default: both.",
        default=UNSET,
    )
    show_hidden: bool | None = attribute_field(
        "True returns hidden mailboxes too. Default: false.", default=UNSET
    )


def _conditions_from_filter(mailbox_filter: MailboxFilter | None) -> MailboxConditions:
    """Return the conditions of a filter."""
    if not mailbox_filter:
        return MailboxConditions()
    subscribed = mailbox_filter.subscribed
    return MailboxConditions(
        optional_tuple(mailbox_filter.patterns),
        has_special_use=mailbox_filter.has_special_use is True,
        include_hidden=mailbox_filter.show_hidden is True,
        is_subscribed=subscribed if isinstance(subscribed, bool) else None,
    )


async def load_mailbox_tree_page(
    info: Info, user_id: int, mailbox_filter: MailboxFilter | None, page_arguments: PageArguments
) -> Connection[Mailbox]:
    """Load a page of the mailboxes of a user, in tree order."""
    conditions = _conditions_from_filter(mailbox_filter or None)
    ordering = ordering_name(
        mailbox_listing.TREE_ORDERING, None if conditions == MailboxConditions() else conditions
    )
    requested_page = page_request(ordering, *page_arguments, sizes=mailbox_listing.TREE_PAGE_SIZES)
    rows = await mailbox_listing.list_mailboxes_of_user(
        info.context, user_id, selected_columns(info, Mailbox), conditions
    )

    async def count_rows() -> int:
        return len(rows)

    return await connection_of_page(
        info,
        Mailbox,
        mailbox_listing.page_of_tree(rows, requested_page),
        lambda row: Cursor(ordering, row.path, row.id),
        count_rows,
    )


async def load_mailbox_totals(
    info: Info, user_id: int, mailbox_filter: MailboxFilter | None
) -> MailboxTotals:
    """Load the totals of the mailboxes of a user that match a filter."""
    conditions = _conditions_from_filter(mailbox_filter or None)
    sums = await mailbox_listing.sum_counters(info.context, user_id, conditions)
    return MailboxTotals(
        message_count=BigInt(sums.message_count),
        unseen_count=BigInt(sums.unseen_count),
        size=ByteSize(sums.size),
    )


@strawberry.type
class MailboxListQuery:
    @query(
        "Returns mailboxes of the selected users, sorted by the creation of the user, then of the "
        "mailbox. A user's list has only mailboxes that the user owns, not those that others "
        "share. If the caller can see a selected user, but not the mailboxes, the list has none "
        "of them. This is also so for an unknown ID. A username or address of a user whom the "
        "caller can't see is NOT_FOUND. Hidden mailboxes are left out by default.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailboxes(
        self,
        info: Info,
        users: Annotated[
            UserSelection | None,
            strawberry.argument(
                description="Users whose mailboxes are returned. Default: the signed-in user."
            ),
        ] = UNSET,
        filter: MailboxFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        ctx, user_selector = info.context, user_selector_from_selection(users or None)
        conditions = _conditions_from_filter(filter or None)
        requested_page = page_request(
            ordering_name(mailbox_listing.CURSOR_KIND, (user_selector, conditions)),
            first,
            after,
            last,
            before,
        )
        page = await mailbox_listing.load_mailbox_page_of_users(
            ctx, user_selector, conditions, requested_page, selected_columns(info, Mailbox)
        )
        return await connection_of_page(
            info,
            Mailbox,
            page,
            lambda row: Cursor(requested_page.ordering, row.user_id, row.id),
            lambda: mailbox_listing.count_mailboxes_of_users(ctx, user_selector, conditions),
        )
