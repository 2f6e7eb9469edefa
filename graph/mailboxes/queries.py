"""Query of the mailboxes of several users."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.fields import Info, query
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.row_mapping import selected_columns
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope
from resolvers.mailboxes import listing as mailbox_listing


@strawberry.type
class MailboxListQuery:
    @query(
        "Folders of many users, user by user, the oldest first; without hidden ones.",
        scope=Scope.MAIL_READ,
    )
    async def mailboxes(
        self,
        info: Info,
        users: UserSelection | None = UNSET,
        patterns: list[str] | None = UNSET,
        first: int = 100,
        after: str | None = UNSET,
    ) -> Connection[Mailbox]:
        ctx, user_selector = info.context, user_selector_from_selection(users or None)
        path_patterns = patterns if isinstance(patterns, list) else None
        requested_page = page_request(
            ordering_name(mailbox_listing.CURSOR_KIND, (user_selector, path_patterns)),
            first,
            after,
            None,
            None,
        )
        page = await mailbox_listing.load_mailbox_page_of_users(
            ctx, user_selector, path_patterns, requested_page, selected_columns(info, Mailbox)
        )
        return await connection_of_page(
            info,
            Mailbox,
            page,
            lambda row: Cursor(requested_page.ordering, row.user_id, row.id),
            lambda: mailbox_listing.count_mailboxes_of_users(ctx, user_selector, path_patterns),
        )
