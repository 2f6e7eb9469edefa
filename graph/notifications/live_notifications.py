"""Subscription of notifications for the user interface."""

from collections.abc import AsyncIterator
from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.changes.queries import ResumeArgument, resume_position_or_now
from graph.messages.types import Message
from graph.types.errors import attribute_field
from graph.types.fields import Info, subscription
from graph.types.object_access import OWN
from graph.types.row_mapping import link
from graph.types.scalars import Cursor
from models.events.event_types import EventType
from models.users.roles import Scope
from resolvers.changes.stream_reader import PositionUpdate, load_last_stream_positions
from resolvers.messages import loaders as message_loaders
from resolvers.notifications.live_notifications import LiveNotification, follow_notifications


@strawberry.type(description="Event that a client can show to the user.")
class Notification:
    row: strawberry.Private[LiveNotification]
    type: EventType = attribute_field(
        "Type of the event: MESSAGE_RECEIVED, SUBMISSION_BOUNCED, LIMIT_REACHED, an event of the "
        "security log, or RESYNC. RESYNC: events may be missing, so read the current state again. "
        "New types can be added."
    )
    title: str = attribute_field(
        "Title of the event for people, in English. For a received message: the name of its "
        "sender, else the address, else `New mail`."
    )
    text: str | None = attribute_field(
        "Text of the event for people, in English. For a received message: its subject, or `(no "
        "subject)`. For an event of the security log: its protocol and IP address. Null: there is "
        "none."
    )
    message: Message | None = link(
        "message_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="Received message. Null: the event is about no message, or the message was "
        "deleted.",
    )
    at: datetime = attribute_field(
        "Time of the event. For RESYNC: time when the notification was made."
    )
    cursor: Cursor = attribute_field("Position of the event, for `after`.")
    has_more: bool = attribute_field(
        "True if more notifications, or other events of the account, follow at once."
    )

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
        "Streams events of the signed-in user's account that a client can show. These are "
        "received unread messages outside of Junk, Trash and muted threads, and messages that did "
        "not reach all recipients. It also streams reached limits, storage warnings, failed "
        "sign-ins, sign-ins except repeated ones, and sign-ins of administrators as the user. "
        "Further events are changes of the password, second factors, recovery codes and "
        "forwarding. New API keys, application passwords and OAuth grants are events, too. Events "
        "of shared mailboxes are not contained. A notification RESYNC reports that events may be "
        "missing.",
        load_positions=load_last_stream_positions,
        item_type=Notification,
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def notifications(
        self, info: Info, after: ResumeArgument = UNSET
    ) -> AsyncIterator[Notification | PositionUpdate]:
        async for item in follow_notifications(info.context, resume_position_or_now(info, after)):
            if isinstance(item, PositionUpdate):
                yield item
            else:
                yield Notification.from_live_notification(item)
