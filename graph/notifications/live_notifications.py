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
from models.events.event_types import EventType
from models.users.roles import Scope
from resolvers.changes.stream_reader import load_last_stream_positions
from resolvers.messages import loaders as message_loaders
from resolvers.notifications.live_notifications import LiveNotification, follow_notifications


@strawberry.type(description="Event that a client can show to the user.")
class Notification:
    row: strawberry.Private[LiveNotification]
    type: EventType = attribute_field(
        "Type of the event: MESSAGE_RECEIVED, SUBMISSION_BOUNCED, LIMIT_REACHED, an event of the "
        "security log, or RESYNC if events may be missing. New types can be added."
    )
    title: str = attribute_field(
        "Title for people, in English. For a received message: its sender."
    )
    text: str | None = attribute_field(
        "Text for people, in English. For a received message: its subject. Null: there is none."
    )
    message: Message | None = link(
        "message_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="Received message. Null: the event is about no message, or the message was "
        "deleted.",
    )
    at: datetime = attribute_field("Time of the event.")
    cursor: Cursor = attribute_field("Position of the event, for `after`.")
    has_more: bool = attribute_field("True if more notifications follow at once.")

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
        "Streams events of the signed-in user's account that a client can show: received unread "
        "messages outside of Junk, Trash and muted threads, reached limits, sign-ins and "
        "other security events, and messages that could not be sent.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
    )
    async def notifications(
        self, info: Info, after: ResumeArgument = UNSET
    ) -> AsyncIterator[Notification]:
        async for notice in follow_notifications(info.context, resume_position_or_now(info, after)):
            yield Notification.from_live_notification(notice)
