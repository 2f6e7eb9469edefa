"""Notify a signed-in user: new mail, limits, sign-ins, and messages that could not be sent."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from models.events.journal import ChangeKind, Event, Position
from models.store.columns import Picked
from models.users.tables import LimitKind, UsageLevel
from resolvers.access import own
from resolvers.auth import security_log
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import Asked
from resolvers.context import Context
from resolvers.notifications.push_events import received, unread
from resolvers.notifications.push_requests import NO_SUBJECT
from resolvers.notifications.webhook_event_types import KINDS as EVENT_TYPES
from resolvers.notifications.webhook_event_types import SECURITY

KINDS = frozenset(
    {
        ChangeKind.MESSAGE_ADDED,
        ChangeKind.LIMIT_REACHED,
        ChangeKind.SECURITY_EVENT,
        ChangeKind.SUBMISSION_CHANGED,
    }
)
RECEIVED, BOUNCED, RESYNC = "message.received", "message.bounced", "resync"
UNSENT = {
    "FAILED": "A message could not be sent",
    "PARTIAL": "A message did not reach all its recipients",
}
HAPPENED = {  # of security log entries that are shown
    "login.succeeded": "New sign-in",
    "login.failed": "A sign-in failed",
    "user.actedAs": "An administrator acts as you",
    "password.changed": "The password was changed",
    "password.reset": "The password was reset",
    "forwarding.changed": "Mail is forwarded elsewhere",
    "totp.enabled": "Codes by time are on",
    "totp.disabled": "Codes by time are off",
    "customTwoFactor.enabled": "A second factor is on",
    "customTwoFactor.disabled": "A second factor is off",
    "webauthn.registered": "A security key was registered",
    "webauthn.deleted": "A security key was removed",
    "twoFactor.disabled": "All second factors are off",
    "recoveryCodes.created": "New recovery codes were made",
    "appPassword.created": "An application password was made",
    "apiKey.created": "An API key was made",
}
LIMITS = {
    LimitKind.STORAGE: "Storage",
    LimitKind.RECIPIENTS: "Mail that may be sent",
    LimitKind.RECEIVED: "Mail that may come in an hour",
    LimitKind.FORWARDS: "Mail that may be forwarded",
    LimitKind.RATE: "Mail that may be sent in a time",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification and the position after it."""

    kind: str
    title: str
    text: str | None
    message_id: int | None
    at: datetime
    position: Position
    more: bool = False


async def follow(ctx: Context, since: Position | None) -> AsyncGenerator[Notice]:
    """Yield notifications of the viewer's own account: those after `since`, then new ones.

    A notification of the type "resync" is yielded if events are no longer kept.
    """
    mine = own(ctx)
    async for batch in stream_reader.follow(ctx, Asked(since, KINDS)):
        if batch.resync:
            text = "Something may not have been told: look for yourself"
            yield Notice(RESYNC, text, None, None, ctx.world.now(), batch.position)
            continue
        told = await _told(ctx, [event for event in batch.events if event.stream_id == mine])
        for nth, notice in enumerate(told, 1):
            last = nth == len(told)
            position = batch.position if last else notice.position
            yield replace(notice, position=position, more=batch.more or not last)


async def _told(ctx: Context, events: Sequence[Event]) -> list[Notice]:
    """Return the notifications of events; the number of statements does not depend on them."""
    mail = [e.object_id for e in events if received(e)]
    messages = await unread(ctx.read, [own(ctx)], mail) if mail else {}
    keys = [e.object_id for e in events if e.kind is ChangeKind.SECURITY_EVENT]
    rows = await security_log.by_ids(ctx, keys) if keys else []
    noted = {row.id: row for row in rows if row}
    return [notice for event in events if (notice := _notice(event, messages, noted))]


def _notice(
    event: Event, messages: Mapping[int, Picked], noted: Mapping[int, Picked]
) -> Notice | None:
    key = event.object_id
    if event.kind is ChangeKind.SUBMISSION_CHANGED:
        title = UNSENT.get(str(event.facts.get("state")))
        return _of(event, BOUNCED, title, None) if title else None
    if event.kind is ChangeKind.LIMIT_REACHED:
        return _limit(event)
    if event.kind is ChangeKind.SECURITY_EVENT:
        return _security(event, noted[key]) if key in noted else None
    if key not in messages or not received(event):
        return None
    message = messages[key]
    sender = message.from_name or message.from_address or "New mail"
    return _of(event, RECEIVED, sender, message.subject or NO_SUBJECT, key)


def _of(
    event: Event, kind: str, title: str, text: str | None, message_id: int | None = None
) -> Notice:
    return Notice(kind, title, text, message_id, event.at, event.position)


def _security(event: Event, row: Picked) -> Notice | None:
    """Return the notification of a security log entry; None for a repeated sign-in."""
    named = SECURITY.get((row.action, row.result == "success"), "")
    if named not in HAPPENED or (named == "login.succeeded" and row._asdict()["count"] > 1):
        return None
    where = " from ".join(each for each in (row.protocol, row.ip) if each)
    return _of(event, named, HAPPENED[named], where or None)


def _limit(event: Event) -> Notice:
    facts = event.facts
    used, allowed = int(facts["used"]), int(facts["allowed"])
    percent = used * 100 // allowed if allowed else 100
    full = facts["refused"] or facts["level"] == UsageLevel.FULL
    state = "used up" if full else f"used up to {percent} %"
    text = "Something was turned away" if facts["refused"] else None
    if text and facts["limit"] == LimitKind.FORWARDS:
        text = "Something was not forwarded"
    title = f"{LIMITS[LimitKind(facts['limit'])]}: {state}"
    return _of(event, EVENT_TYPES[ChangeKind.LIMIT_REACHED], title, text)
