"""GraphQL types of changes."""

from datetime import datetime
from typing import Any

import strawberry

from graph.changes.changed_types import TYPE_NAME_BY_EVENT_TYPE
from graph.mailboxes.types import Mailbox
from graph.messages.types import Message
from graph.nodes import load_node
from graph.submission.types import Submission
from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.row_mapping import NodeView, link
from graph.types.scalars import BigInt, Cursor
from graph.users.types import User
from models.events.event_types import SUBMISSION_EVENT_TYPES, EventType
from models.events.journal import JournalEvent
from models.users.tables import LimitKind, UsageLevel
from resolvers.changes.stream_reader import EventBatch, ResyncReason
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.submission import loaders as submission_loaders
from resolvers.users import loaders as user_loaders


def _user_from_row(row: Any) -> User | None:
    return User.from_row_or_none(row)


@strawberry.interface(description="One event.")
class Change:
    row: strawberry.Private[JournalEvent]
    cursor: Cursor = attribute_field("Resume after this.")
    at: datetime = attribute_field("Committed.")
    type: EventType = attribute_field("What happened.")
    user: User | None = link(
        "stream_id",
        user_loaders.load_visible_users_by_id,
        _user_from_row,
        description="Whose account.",
    )
    origin: str | None = attribute_field(
        "Session id or idempotency key of the cause, to recognise one's own echo."
    )


def _common_change_fields(event: JournalEvent) -> dict[str, Any]:
    """Return the fields that the types of all changes have."""
    return {
        "row": event,
        "cursor": Cursor(event.positions),
        "at": event.at,
        "type": event.type,
        "origin": event.origin,
    }


@strawberry.type(description="Folder made, changed, renamed, deleted.")
class MailboxChange(Change):
    mailbox_id: strawberry.ID = attribute_field("Also after deletion.")
    mailbox: Mailbox | None = link(
        "object_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="As it is now, null when deleted.",
    )
    path: str | None = attribute_field("Path after the event.")
    old_path: str | None = attribute_field("Path before a renaming.")
    modseq: BigInt = attribute_field("Modification sequence of the event.")

    @classmethod
    def from_event(cls, event: JournalEvent) -> "MailboxChange":
        """Return the GraphQL object of an event of a mailbox."""
        return cls(
            **_common_change_fields(event),
            mailbox_id=global_ids.encode("Mailbox", event.object_id),
            path=event.facts.get("path"),
            old_path=event.facts.get("oldPath"),
            modseq=BigInt(event.modseq),
        )


def _mailbox_global_id(mailbox_id: int | None) -> strawberry.ID | None:
    """Return the global ID of a mailbox; None without an id."""
    return global_ids.encode("Mailbox", mailbox_id) if mailbox_id else None


@strawberry.type(description="Message added, changed, moved, deleted, archived, restored.")
class MessageChange(Change):
    message_id: strawberry.ID = attribute_field("Also after deletion.")
    message: Message | None = link(
        "object_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="As it is now, null when gone.",
    )
    mailbox_id: strawberry.ID | None = attribute_field("Folder it is in, or was in.")
    uid: BigInt | None = attribute_field("Uid there.")
    from_mailbox_id: strawberry.ID | None = attribute_field("Folder it left.")
    from_uid: BigInt | None = attribute_field("Uid it had there.")
    flags: list[str] | None = attribute_field("Flags after the event.")
    modseq: BigInt = attribute_field("Modification sequence of the event.")

    @classmethod
    def from_event(cls, event: JournalEvent) -> "MessageChange":
        """Return the GraphQL object of an event of a message."""
        facts = event.facts
        return cls(
            **_common_change_fields(event),
            message_id=global_ids.encode("Message", event.object_id),
            mailbox_id=_mailbox_global_id(facts.get("mailbox")),
            uid=facts.get("uid"),
            from_mailbox_id=_mailbox_global_id(facts.get("fromMailbox")),
            from_uid=facts.get("fromUid"),
            flags=facts.get("flags"),
            modseq=BigInt(event.modseq),
        )


@strawberry.type(description="A message on its way.")
class SubmissionChange(Change):
    submission: Submission | None = link(
        "object_id",
        submission_loaders.load_own_submissions_by_id,
        Submission.from_row_or_none,
        description="As it is now, null when gone.",
    )

    @classmethod
    def from_event(cls, event: JournalEvent) -> "SubmissionChange":
        """Return the GraphQL object of an event of a submission."""
        return cls(**_common_change_fields(event))


@strawberry.type(
    description="A limit was reached, or storage has passed a mark: told once, and again only "
    "after it was below. What was turned away for it is told once in the period, or in a day."
)
class LimitChange(Change):
    limit_kind: LimitKind = attribute_field("The kind of the limit.")
    level: UsageLevel = attribute_field("How far it was used up.")
    used: BigInt = attribute_field("In use then; bytes of STORAGE.")
    limit: BigInt = attribute_field(
        "The limit at that time: bytes for STORAGE, else a count of messages or recipients."
    )
    refused: bool = attribute_field(
        "A message was turned away; false: one went through and used it up."
    )
    resets_at: datetime | None = attribute_field("When the period ends; null of STORAGE.")

    @classmethod
    def from_event(cls, event: JournalEvent) -> "LimitChange":
        """Return the GraphQL object of an event for a limit that was reached."""
        facts, until = event.facts, event.facts["resetsAt"]
        return cls(
            **_common_change_fields(event),
            limit_kind=LimitKind(facts["limitKind"]),
            level=UsageLevel(facts["level"]),
            used=BigInt(facts["used"]),
            limit=BigInt(facts["limit"]),
            refused=facts["refused"],
            resets_at=until and datetime.fromisoformat(until),
        )


@strawberry.type(description="Everything else about an account.")
class AccountChange(Change):
    node_id: strawberry.ID = attribute_field("Id of what changed.")

    @field("What changed, null when deleted.")
    async def node(self, info: Info) -> NodeView | None:
        return await load_node(info, self.node_id)

    @classmethod
    def from_event(cls, event: JournalEvent) -> "AccountChange":
        """Return the GraphQL object of an event of any other object."""
        return cls(
            **_common_change_fields(event),
            node_id=global_ids.encode(TYPE_NAME_BY_EVENT_TYPE[event.type], event.object_id),
        )


@strawberry.type(description="The stream cannot go on from the cursor given.")
class ResyncChange(Change):
    reason: ResyncReason = attribute_field("Fetch state again, then go on from cursor.")


def change_from_event(event: JournalEvent) -> Change:
    """Return the event as an object of its GraphQL type."""
    if event.type.startswith("MAILBOX_"):
        return MailboxChange.from_event(event)
    if event.type.startswith("MESSAGE_"):
        return MessageChange.from_event(event)
    if event.type in SUBMISSION_EVENT_TYPES:
        return SubmissionChange.from_event(event)
    if event.type is EventType.LIMIT_REACHED:
        return LimitChange.from_event(event)
    return AccountChange.from_event(event)


@strawberry.type(description="Events of one wake-up, in order.")
class ChangeBatch:
    events: list[Change] = attribute_field("The events.")
    cursor: Cursor = attribute_field(
        "After the last event; also moves on when nothing visible happened."
    )
    has_more: bool = attribute_field("More is coming at once (catching up).")

    @classmethod
    def from_batch(cls, batch: EventBatch, now: datetime) -> "ChangeBatch":
        """Return the GraphQL object of a batch.

        If the client must resync, the batch has one ResyncChange with the time `now`.
        """
        events = [change_from_event(event) for event in batch.events]
        cursor = Cursor(batch.position)
        if batch.resync_reason:
            (stream, *_) = batch.position
            event = JournalEvent(EventType.RESYNC, 0, now, stream, batch.position, {}, None)
            events = [ResyncChange(**_common_change_fields(event), reason=batch.resync_reason)]
        return cls(events=events, cursor=cursor, has_more=batch.has_more)
