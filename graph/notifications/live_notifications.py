"""Subscription of notifications for the user interface."""

from collections.abc import AsyncIterator
from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.changes.queries import ResumeArgument, resume_position_or_now
from graph.messages.types import Message
from graph.types.errors import attribute_field
from graph.types.fields import Info, subscription
from graph.types.row_mapping import link
from graph.types.scalars import Cursor
from models.users.roles import Scope
from resolvers.changes.stream_reader import load_last_stream_positions
from resolvers.messages import loaders as message_loaders
from resolvers.notifications.live_notifications import LiveNotification, follow_notifications


@strawberry.type(description="Something worth showing.")
class Notification:
    row: strawberry.Private[LiveNotification]
    type: str = attribute_field(
        "message.received, message.bounced, limit.reached, login.succeeded and others of "
        "webhookTypes; resync where something may not have been told. New types may come."
    )
    title: str = attribute_field("For people, in English; of mail who sent it.")
    text: str | None = attribute_field("More of it; of mail its subject.")
    message: Message | None = link(
        "message_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="The mail it tells of, null when gone.",
    )
    at: datetime = attribute_field("When it happened.")
    cursor: Cursor = attribute_field("Resume after this.")
    has_more: bool = attribute_field("More is coming at once (catching up).")

    @classmethod
    def from_live_notification(cls, live_notification: LiveNotification) -> "Notification":
        """Return the GraphQL object of a notification."""
        return cls(
            row=live_notification,
            type=live_notification.type,
            title=live_notification.title,
            text=live_notification.text,
            at=live_notification.occurred_at,
            cursor=Cursor(live_notification.position),
            has_more=live_notification.has_more,
        )


@strawberry.type
class NotificationSubscription:
    @subscription(
        "New mail and events worth showing to the viewer, of the own account: mail that came and "
        "is unread, outside of Junk, Trash and muted conversations; limits, sign-ins and other "
        "security events, mail that could not be sent. From a position on: missed, then live.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
    )
    async def notifications(
        self, info: Info, after: ResumeArgument = UNSET
    ) -> AsyncIterator[Notification]:
        async for notice in follow_notifications(info.context, resume_position_or_now(info, after)):
            yield Notification.from_live_notification(notice)
