"""Query of the mailboxes of several users."""

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.connections import Connection, connected, page_asked
from graph.types.fields import Info, query
from graph.types.references import UserSelection, users_named
from graph.types.row_mapping import columns
from models.store.keyset_pages import Cursor, ordering
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
        masks: list[str] | None = UNSET,
        first: int = 100,
        after: str | None = UNSET,
    ) -> Connection[Mailbox]:
        ctx, user_selector = info.context, users_named(users or None)
        path_masks = masks if isinstance(masks, list) else None
        requested_page = page_asked(
            ordering(mailbox_listing.ORDER, (user_selector, path_masks)), first, after, None, None
        )
        page = await mailbox_listing.page(
            ctx, user_selector, path_masks, requested_page, columns(info, Mailbox)
        )
        return await connected(
            info,
            Mailbox,
            page,
            lambda row: Cursor(requested_page.ordering, row.user_id, row.id),
            lambda: mailbox_listing.count(ctx, user_selector, path_masks),
        )
