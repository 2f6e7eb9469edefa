"""Counters of folders, as the API shows them while they change."""

from collections.abc import AsyncIterator

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.fields import Info, subscription
from graph.types.references import UserRef, owner_named
from models.users.roles import Scope
from resolvers.mailboxes import counters


@strawberry.type
class CounterSubscription:
    @subscription(
        "Folders whose counters changed, gathered for 50 ms; the first event has all. The "
        "viewer's with those that are shared with them, or for administrators an account's.",
        scope=Scope.MAIL_READ,
    )
    async def counters(
        self, info: Info, user: UserRef | None = UNSET
    ) -> AsyncIterator[list[Mailbox]]:
        key = await owner_named(info, user)
        whose = None if key == info.context.viewer.user_id else key
        async for rows in counters.follow(info.context, whose):
            yield [Mailbox.of(row) for row in rows]
