"""Subscription of notifications for the user interface."""

from collections.abc import AsyncIterator
from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.changes.queries import since
from graph.messages.types import Message
from graph.types.errors import leaf
from graph.types.fields import Info, subscription
from graph.types.row_mapping import link
from graph.types.scalars import Cursor
from models.users.roles import Scope
from resolvers.changes.stream_reader import standing
from resolvers.messages import loaders as message_loaders
from resolvers.notifications.live_notifications import Notice, follow


@strawberry.type(description="Something worth showing.")
class Notification:
    row: strawberry.Private[Notice]
    kind: str = leaf(
        "message.received, message.bounced, limit.reached, login.succeeded and others of "
        "webhookTypes; resync where something may not have been told. New kinds may come."
    )
    title: str = leaf("For people, in English; of mail who sent it.")
    text: str | None = leaf("More of it; of mail its subject.")
    message: Message | None = link(
        "message_id",
        message_loaders.by_ids,
        Message.maybe,
        description="The mail it tells of, null when gone.",
    )
    at: datetime = leaf("When it happened.")
    cursor: Cursor = leaf("Resume after this.")
    has_more: bool = leaf("More is coming at once (catching up).")

    @classmethod
    def of(cls, notice: Notice) -> "Notification":
        """Return the GraphQL object of a notification."""
        return cls(
            row=notice,
            kind=notice.kind,
            title=notice.title,
            text=notice.text,
            at=notice.at,
            cursor=Cursor(notice.position),
            has_more=notice.more,
        )


@strawberry.type
class NotificationSubscription:
    @subscription(
        "New mail and events worth showing to the viewer, of the own account: mail that came and "
        "is unread, outside of Junk, Trash and muted conversations; limits, sign-ins and other "
        "security events, mail that could not be sent. From a position on: missed, then live.",
        standing=standing,
        scope=Scope.MAIL_READ,
    )
    async def notifications(
        self, info: Info, after: Cursor | None = UNSET
    ) -> AsyncIterator[Notification]:
        async for notice in follow(info.context, since(info, after)):
            yield Notification.of(notice)
