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
from resolvers.auth import security_log
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.notifications.push_events import is_received_mail, read_notifiable_messages
from resolvers.notifications.push_requests import NO_SUBJECT

EVENT_TYPES = SECURITY_EVENT_TYPES | {
    EventType.MESSAGE_RECEIVED,
    EventType.LIMIT_REACHED,
    EventType.SUBMISSION_BOUNCED,
}
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
    EventType.FORWARDING_CHANGED: "Mail is forwarded elsewhere",
    EventType.TOTP_ENABLED: "Codes by time are on",
    EventType.TOTP_DISABLED: "Codes by time are off",
    EventType.EXTERNAL_TWO_FACTOR_ENABLED: "A second factor is on",
    EventType.EXTERNAL_TWO_FACTOR_DISABLED: "A second factor is off",
    EventType.WEBAUTHN_REGISTERED: "A security key was registered",
    EventType.WEBAUTHN_DELETED: "A security key was removed",
    EventType.TWO_FACTOR_DISABLED: "All second factors are off",
    EventType.RECOVERY_CODES_CREATED: "New recovery codes were made",
    EventType.APP_PASSWORD_CREATED: "An application password was made",
    EventType.API_KEY_CREATED: "An API key was made",
}
LIMIT_TITLES = {
    LimitKind.STORAGE: "Storage",
    LimitKind.RECIPIENTS: "Mail that may be sent",
    LimitKind.RECEIVED: "Mail that may come in an hour",
    LimitKind.FORWARDS: "Mail that may be forwarded",
    LimitKind.RATE: "Mail that may be sent in a time",
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
) -> AsyncGenerator[LiveNotification]:
    """Yield notifications of the viewer's own account: those after `since`, then new ones.

    A notification of the type RESYNC is yielded if events are no longer kept.
    """
    user_id = require_user_id(ctx)
    async for batch in stream_reader.follow_changes(ctx, FollowRequest(since, EVENT_TYPES)):
        if batch.resync_reason:
            text = "Something may not have been told: look for yourself"
            yield LiveNotification(
                EventType.RESYNC, text, None, None, ctx.environment.now(), batch.position
            )
            continue
        notifications = await _notifications_from_events(
            ctx, [event for event in batch.events if event.stream_id == user_id]
        )
        for number, notice in enumerate(notifications, 1):
            is_last = number == len(notifications)
            position = batch.position if is_last else notice.position
            yield replace(notice, position=position, has_more=batch.has_more or not is_last)


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
    rows = await security_log.load_visible_events_by_id(ctx, security_ids) if security_ids else []
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
        return _notification(event, title, None) if title else None
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
    return _notification(event, sender, message.subject or NO_SUBJECT, object_id)


def _notification(
    event: JournalEvent, title: str, text: str | None, message_id: int | None = None
) -> LiveNotification:
    return LiveNotification(event.type, title, text, message_id, event.at, event.positions)


def _security_notification(event: JournalEvent, row: ColumnRow) -> LiveNotification | None:
    """Return the notification of a security log entry; None for a repeated sign-in."""
    if event.type not in SECURITY_TITLES or (
        event.type is EventType.SIGN_IN_SUCCEEDED and row._asdict()["count"] > 1
    ):
        return None
    origin = " from ".join(each for each in (row.protocol, row.ip) if each)
    return _notification(event, SECURITY_TITLES[event.type], origin or None)


def _limit_notification(event: JournalEvent) -> LiveNotification:
    facts = event.facts
    used, limit = int(facts["used"]), int(facts["limit"])
    percent = used * 100 // limit if limit else 100
    is_full = facts["refused"] or facts["level"] == UsageLevel.FULL
    usage = "used up" if is_full else f"used up to {percent} %"
    text = "Something was turned away" if facts["refused"] else None
    if text and facts["limitKind"] == LimitKind.FORWARDS:
        text = "Something was not forwarded"
    title = f"{LIMIT_TITLES[LimitKind(facts['limitKind'])]}: {usage}"
    return _notification(event, title, text)
