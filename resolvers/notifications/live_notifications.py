"""Notify a signed-in user: new mail, limits, sign-ins, and messages that could not be sent."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from models.auth.security_log import SECURITY_EVENT_TYPES
from models.events.event_types import EventType
from models.events.journal import JournalEvent, StreamPositions
from models.store.columns import ColumnRow
from models.users.tables import LimitKind, UsageLevel
from resolvers.access import require_user_id
from resolvers.auth import security_event_pages
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest, PositionUpdate
from resolvers.context import Context
from resolvers.notifications.push_events import is_received_mail, read_notifiable_messages
from resolvers.notifications.push_requests import NO_SUBJECT

EVENT_TYPES = SECURITY_EVENT_TYPES | {
    EventType.MESSAGE_RECEIVED,
    EventType.LIMIT_REACHED,
    EventType.SUBMISSION_BOUNCED,
}
EVENTS_PER_POSITION_UPDATE = 100  # without a notification
UNSENT_TITLES = {
    "FAILED": "A message could not be sent",
    "PARTIAL": "A message did not reach all its recipients",
}
SECURITY_TITLES = {  # of security log entries that are shown
    EventType.SIGN_IN_SUCCEEDED: "New sign-in",
    EventType.SIGN_IN_FAILED: "A sign-in failed",
    EventType.IMPERSONATION_STARTED: "An administrator acts as you",
    EventType.PASSWORD_CHANGED: "The password was changed",
    EventType.PASSWORD_RESET: "The password was reset",
    EventType.FORWARDING_CHANGED: "Mail is forwarded to another address",
    EventType.TOTP_ENABLED: "One-time codes (TOTP) are on",
    EventType.TOTP_DISABLED: "One-time codes (TOTP) are off",
    EventType.EXTERNAL_TWO_FACTOR_ENABLED: "A second factor is on",
    EventType.EXTERNAL_TWO_FACTOR_DISABLED: "A second factor is off",
    EventType.WEBAUTHN_REGISTERED: "A security key was registered",
    EventType.WEBAUTHN_DELETED: "A security key was removed",
    EventType.TWO_FACTOR_DISABLED: "All second factors are off",
    EventType.RECOVERY_CODES_CREATED: "New recovery codes were created",
    EventType.OAUTH_GRANT_CREATED: "An application was given access to the account",
    EventType.APP_PASSWORD_CREATED: "An application password was created",
    EventType.API_KEY_CREATED: "An API key was created",
}
LIMIT_TITLES = {
    LimitKind.STORAGE: "Storage",
    LimitKind.RECIPIENTS: "Limit of sent mail",
    LimitKind.RECEIVED: "Limit of received mail per hour",
    LimitKind.FORWARDS: "Limit of forwarded mail",
    LimitKind.RATE: "Limit of recipients",
}


@dataclass(frozen=True, slots=True)
class LiveNotification:
    """One notification and the position after it."""

    type: EventType
    title: str
    text: str | None
    message_id: int | None
    occurred_at: datetime
    position: StreamPositions
    has_more: bool = False


async def follow_notifications(
    ctx: Context, since: StreamPositions | None
) -> AsyncGenerator[LiveNotification | PositionUpdate]:
    """Yield notifications of the viewer's own account: those after `since`, then new ones.

    A notification of the type RESYNC is yielded if events are no longer kept. Positions without a
    notification are yielded after the start, after `has_more`, and after many other events.
    """
    user_id, reported = require_user_id(ctx), PositionUpdate({}, has_more=True)
    async for batch in stream_reader.follow_changes(ctx, FollowRequest(since, EVENT_TYPES)):
        if batch.resync_reason:
            text = "Notifications may be missing: reload the page."
            yield LiveNotification(
                EventType.RESYNC, text, None, None, ctx.environment.now(), batch.position
            )
            reported = PositionUpdate(batch.position)
            continue
        notifications = await _notifications_from_events(
            ctx, [event for event in batch.events if event.stream_id == user_id]
        )
        for number, notice in enumerate(notifications, 1):
            is_last = number == len(notifications)
            position = batch.position if is_last else notice.position
            yield replace(notice, position=position, has_more=batch.has_more or not is_last)
        update = PositionUpdate(batch.position, batch.has_more)
        if not notifications and _needs_position_update(reported, update):
            yield update
        elif not notifications:
            continue
        reported = update


def _needs_position_update(reported: PositionUpdate, update: PositionUpdate) -> bool:
    """True if a client without a new notification needs the position of the stream.

    It resumes there. If its position stayed at the last notification, it would have to resync.
    """
    event_count = stream_reader.events_between(reported.position, update.position)
    return (reported.has_more and not update.has_more) or event_count >= EVENTS_PER_POSITION_UPDATE


async def _notifications_from_events(
    ctx: Context, events: Sequence[JournalEvent]
) -> list[LiveNotification]:
    """Return the notifications of events; the number of statements does not depend on them."""
    received_ids = [e.object_id for e in events if is_received_mail(e)]
    messages = (
        await read_notifiable_messages(ctx.read, [require_user_id(ctx)], received_ids)
        if received_ids
        else {}
    )
    security_ids = [e.object_id for e in events if e.type in SECURITY_EVENT_TYPES]
    rows = (
        await security_event_pages.load_visible_events_by_id(ctx, security_ids)
        if security_ids
        else []
    )
    security_rows = {row.id: row for row in rows if row}
    return [
        notice
        for event in events
        if (notice := _notification_from_event(event, messages, security_rows))
    ]


def _notification_from_event(
    event: JournalEvent, messages: Mapping[int, ColumnRow], security_rows: Mapping[int, ColumnRow]
) -> LiveNotification | None:
    object_id = event.object_id
    if event.type is EventType.SUBMISSION_BOUNCED:
        title = UNSENT_TITLES.get(str(event.facts.get("state")))
        return _live_notification(event, title, None) if title else None
    if event.type is EventType.LIMIT_REACHED:
        return _limit_notification(event)
    if event.type in SECURITY_EVENT_TYPES:
        return (
            _security_notification(event, security_rows[object_id])
            if object_id in security_rows
            else None
        )
    if object_id not in messages or not is_received_mail(event):
        return None
    message = messages[object_id]
    sender = message.from_name or message.from_address or "New mail"
    return _live_notification(event, sender, message.subject or NO_SUBJECT, object_id)


def _live_notification(
    event: JournalEvent, title: str, text: str | None, message_id: int | None = None
) -> LiveNotification:
    return LiveNotification(event.type, title, text, message_id, event.at, event.positions)


def _security_notification(event: JournalEvent, row: ColumnRow) -> LiveNotification | None:
    """Return the notification of a security log entry; None for a repeated sign-in."""
    if event.type not in SECURITY_TITLES or (
        event.type is EventType.SIGN_IN_SUCCEEDED and row._asdict()["count"] > 1
    ):
        return None
    origin = " from ".join(value for value in (row.protocol, row.ip) if value)
    return _live_notification(event, SECURITY_TITLES[event.type], origin or None)


def _limit_notification(event: JournalEvent) -> LiveNotification:
    facts = event.facts
    used, limit = int(facts["used"]), int(facts["limit"])
    percent = used * 100 // limit if limit else 100
    is_full = facts["refused"] or facts["level"] == UsageLevel.FULL
    usage = "limit reached" if is_full else f"{percent} % used"
    text = "A message was rejected." if facts["refused"] else None
    if text and facts["limitKind"] == LimitKind.FORWARDS:
        text = "A message was not forwarded."
    title = f"{LIMIT_TITLES[LimitKind(facts['limitKind'])]}: {usage}"
    return _live_notification(event, title, text)
