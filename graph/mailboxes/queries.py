"""Query of the mailboxes of several users."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.references import UserSelection, optional_tuple, user_selector_from_selection
from graph.types.row_mapping import selected_columns
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope
from resolvers.mailboxes import listing as mailbox_listing
from resolvers.mailboxes.listing import MailboxConditions


@strawberry.input(description="Conditions on mailboxes. All of them must hold.")
class MailboxFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"patterns"})

    patterns: list[str] | None = attribute_field(
        "Paths with * for any text and % for any text without a slash. One of them must match. "
        "Null: all paths.",
        default=UNSET,
    )
    has_special_use: bool | None = attribute_field(
        "True returns only mailboxes with a special use (RFC 6154).", default=UNSET
    )
    subscribed: bool | None = attribute_field(
        "Whether the user subscribes to the mailbox. Null: either.", default=UNSET
    )
    show_hidden: bool | None = attribute_field("True returns hidden mailboxes too.", default=UNSET)


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


@strawberry.type
class MailboxListQuery:
    @query(
        "Mailboxes of several users, by user and creation. Default: all mailboxes that are not "
        "hidden.",
        scope=Scope.MAIL_READ,
    )
    async def mailboxes(
        self,
        info: Info,
        users: UserSelection | None = UNSET,
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
