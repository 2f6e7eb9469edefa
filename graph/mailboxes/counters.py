"""Subscription of the counters of mailboxes."""

from collections.abc import AsyncIterator
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.mailboxes.types import Mailbox
from graph.types.fields import Info, subscription
from graph.types.object_access import MANAGED
from graph.types.references import UserRef, require_visible_user_id_if_named
from models.users.roles import AdminPermission, Scope
from resolvers.mailboxes import counters


@strawberry.type
class CounterSubscription:
    @subscription(
        "Returns all mailboxes of the user first, also hidden ones. Later events have new "
        "mailboxes, and those whose number of messages or unseen messages has changed. An event "
        "has at most 250 mailboxes: more follow in further events. Deleted mailboxes cause no "
        "event. For the signed-in user, also if `user` names them, the mailboxes that other users "
        "share are included.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def mailbox_counters(
        self,
        info: Info,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="User whose mailboxes are followed. Default: the signed-in user."
            ),
        ] = UNSET,
    ) -> AsyncIterator[list[Mailbox]]:
        user_id = await require_visible_user_id_if_named(info, user)
        other_user_id = None if user_id == info.context.viewer.user_id else user_id
        async for rows in counters.list_mailboxes_then_follow_counters(info.context, other_user_id):
            yield [Mailbox.from_row(row) for row in rows]
