"""Subscription of the counters of mailboxes."""

from collections.abc import AsyncIterator

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.fields import Info, subscription
from graph.types.references import UserRef, load_named_user_id
from models.users.roles import Scope
from resolvers.mailboxes import counters


@strawberry.type
class CounterSubscription:
    @subscription(
        "Folders whose counters changed, gathered for 50 ms; the first event has all. The "
        "viewer's with those that are shared with them, or for administrators an account's.",
        scope=Scope.MAIL_READ,
    )
    async def mailbox_counters(
        self, info: Info, user: UserRef | None = UNSET
    ) -> AsyncIterator[list[Mailbox]]:
        user_id = await load_named_user_id(info, user)
        other_user_id = None if user_id == info.context.viewer.user_id else user_id
        async for rows in counters.follow_counters(info.context, other_user_id):
            yield [Mailbox.from_row(row) for row in rows]
