"""GraphQL types of changes."""

from datetime import datetime
from typing import Any

import strawberry

from graph.changes.changed_types import TYPE_NAME_BY_EVENT_TYPE
from graph.mailboxes.types import Mailbox
from graph.messages.types import Message
from graph.nodes import load_visible_node
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


@strawberry.interface(description="Event: a committed change of an account or domain.")
class Change:
    row: strawberry.Private[JournalEvent]
    cursor: Cursor = attribute_field(
        "Position in the event journal after this event. Pass it as `after` to a stream of the "
        "same account or domains, which then returns only later events. A stream of another "
        "account or domain refuses it (BAD_CURSOR)."
    )
    at: datetime = attribute_field(
        "Time when the change was committed; of a ResyncChange, the time of the notice."
    )
    type: EventType = attribute_field("Type of the event.")
    user: User | None = link(
        "stream_id",
        user_loaders.load_visible_users_by_id,
        _user_from_row,
        description=(
            "User whose account changed. Null if the caller can't see the user, or the event "
            "belongs to no account. A ResyncChange names only one of the followed users: the "
            "client must read the state of all of them again. Always null in `userChanges` and "
            "`domainChanges`, where `UserChange.node` is the changed object."
        ),
    )
    origin: str | None = attribute_field(
        "`sessionId` or idempotency key of the request that caused the event, so that a client "
        "recognizes its own changes. Null: there was none, or the event belongs to a domain or to "
        "another user's account."
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


@strawberry.type(
    description="Event about a mailbox: it was created, changed, renamed, deleted, shared or no "
    "longer shared."
)
class MailboxChange(Change):
    mailbox_id: strawberry.ID = attribute_field(
        "Global ID of the mailbox, also after its deletion."
    )
    mailbox: Mailbox | None = link(
        "object_id",
        mailbox_loaders.load_visible_by_ids,
        Mailbox.from_row_or_none,
        description="Mailbox in its current state. Null if it was deleted or the caller can't see "
        "it.",
    )
    message_count: BigInt | None = link(
        "object_id",
        mailbox_loaders.load_visible_by_ids,
        lambda row: row and BigInt(row.message_count),
        description="Number of messages in the mailbox when the event is read. Null if `mailbox` "
        "is null.",
    )
    unseen_count: BigInt | None = link(
        "object_id",
        mailbox_loaders.load_visible_by_ids,
        lambda row: row and BigInt(row.unseen_count),
        description="Number of unread messages (without the flag \\Seen) in the mailbox when the "
        "event is read. Null if `mailbox` is null.",
    )
    path: str | None = attribute_field(
        "Path of the mailbox after the event; for a deletion, the last one. Null for most events "
        "MAILBOX_UPDATED."
    )
    old_path: str | None = attribute_field(
        "Path of the mailbox before it was renamed. Null for other events."
    )
    modseq: BigInt = attribute_field("MODSEQ of the event (RFC 7162).")

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


@strawberry.type(
    description="Event about a message: it was added, received, changed, moved, deleted, restored "
    "or purged."
)
class MessageChange(Change):
    message_id: strawberry.ID = attribute_field(
        "Global ID of the message, also after its deletion."
    )
    message: Message | None = link(
        "object_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description="Message in its current state. Null if it was deleted or the caller can't see "
        "it.",
    )
    mailbox_id: strawberry.ID = attribute_field(
        "Global ID of the mailbox with the message after the event; after a deletion, of the last "
        "one."
    )
    uid: BigInt = attribute_field("UID of the message in the mailbox of `mailboxId`.")
    from_mailbox_id: strawberry.ID | None = attribute_field(
        "Global ID of the mailbox that the message was in before it was moved, or before new "
        "content replaced it as a draft. Null for other events."
    )
    from_uid: BigInt | None = attribute_field(
        "UID in the mailbox of `fromMailboxId` that the message had before it was moved, or "
        "before new content replaced it as a draft. Null for other events."
    )
    flags: list[str] | None = attribute_field(
        "All flags and keywords of the message after the event. Null if the message was deleted "
        "or purged. At most 64 keywords."
    )
    modseq: BigInt = attribute_field("MODSEQ of the event (RFC 7162).")

    @classmethod
    def from_event(cls, event: JournalEvent) -> "MessageChange":
        """Return the GraphQL object of an event of a message."""
        facts = event.facts
        return cls(
            **_common_change_fields(event),
            message_id=global_ids.encode("Message", event.object_id),
            mailbox_id=global_ids.encode("Mailbox", facts["mailbox"]),
            uid=facts["uid"],
            from_mailbox_id=_mailbox_global_id(facts.get("fromMailbox")),
            from_uid=facts.get("fromUid"),
            flags=facts.get("flags"),
            modseq=BigInt(event.modseq),
        )


@strawberry.type(
    description="Event about the submission of a message: it was created, or its state changed."
)
class SubmissionChange(Change):
    submission: Submission | None = link(
        "object_id",
        submission_loaders.load_own_submissions_by_id,
        Submission.from_row_or_none,
        description="Submission in its current state. Null if it was deleted or the caller can't "
        "see it.",
    )

    @classmethod
    def from_event(cls, event: JournalEvent) -> "SubmissionChange":
        """Return the GraphQL object of an event of a submission."""
        return cls(**_common_change_fields(event))


@strawberry.type(
    description="Event about a limit of an account: it was reached, or the storage passed a "
    "warning level. A level is reported once, and again only after the usage fell below it. "
    "Refusals are reported once per period; for STORAGE, once a day."
)
class LimitChange(Change):
    limit_kind: LimitKind = attribute_field(
        "Kind of the limit, such as the storage or the recipients per day."
    )
    level: UsageLevel = attribute_field("Level that the usage has reached.")
    used: BigInt = attribute_field(
        "Usage at the time of the event: bytes for STORAGE, otherwise a number of messages or "
        "recipients."
    )
    limit: BigInt = attribute_field(
        "Limit at the time of the event: bytes for STORAGE, otherwise a number of messages or "
        "recipients."
    )
    refused: bool = attribute_field(
        "True if a message or recipient was refused because of the limit. False: an accepted "
        "message or recipient reached the level."
    )
    resets_at: datetime | None = attribute_field(
        "Time when the period of the limit ends. Null for STORAGE, which has no period."
    )

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


@strawberry.type(
    description=(
        "Event about any object that is no mailbox, message, submission or limit. It can be a "
        "label, an entry of the security log, or the account itself."
    )
)
class UserChange(Change):
    node_id: strawberry.ID = attribute_field(
        "Global ID of the object that the event is about, also after its deletion."
    )

    @field(
        "Object that the event is about, in its current state. Null if it was deleted or the "
        "caller can't see it."
    )
    async def node(self, info: Info) -> NodeView | None:
        return await load_visible_node(info, self.node_id)

    @classmethod
    def from_event(cls, event: JournalEvent) -> "UserChange":
        """Return the GraphQL object of an event of any other object."""
        return cls(
            **_common_change_fields(event),
            node_id=global_ids.encode(TYPE_NAME_BY_EVENT_TYPE[event.type], event.object_id),
        )


@strawberry.type(
    description=(
        "Notice that events after the client's last position can't be returned. The client must "
        "read the state of the followed accounts and domains again. After the reason OVERFLOW, it "
        "can instead read the missed events with the query `changes`. A subscription then "
        "continues after `cursor`. With the query `changes`, the client passes `cursor` as `after`."
    )
)
class ResyncChange(Change):
    reason: ResyncReason = attribute_field(
        "Reason why the stream can't continue after the given cursor."
    )


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
    return UserChange.from_event(event)


@strawberry.type(
    description="Events that are delivered together, in the order in which they were committed."
)
class ChangeBatch:
    events: list[Change] = attribute_field(
        "Events of the batch, the oldest first. At most 500 in a subscription, and `first` in the "
        "query `changes`."
    )
    cursor: Cursor = attribute_field(
        "Position in the event journal after the batch. It also advances past events that the "
        "caller can't see."
    )
    has_more: bool = attribute_field(
        "True if further events exist already. With the query, request the next page at once; the "
        "subscription sends it without a request."
    )

    @classmethod
    def from_batch(cls, batch: EventBatch, resync_time: datetime) -> "ChangeBatch":
        """Return the GraphQL object of a batch.

        If the client must resync, the batch has one ResyncChange with the time `now`.
        """
        events = [change_from_event(event) for event in batch.events]
        cursor = Cursor(batch.position)
        if batch.resync_reason:
            (stream, *_) = batch.position
            event = JournalEvent(EventType.RESYNC, 0, resync_time, stream, batch.position, {}, None)
            events = [ResyncChange(**_common_change_fields(event), reason=batch.resync_reason)]
        return cls(events=events, cursor=cursor, has_more=batch.has_more)

    def split_in_halves(self) -> "tuple[ChangeBatch, ChangeBatch]":
        """Return two batches with the same events. The batch must have at least two."""
        middle = len(self.events) // 2
        first, second = self.events[:middle], self.events[middle:]
        cls = type(self)
        return (
            cls(events=first, cursor=first[-1].cursor, has_more=True),
            cls(events=second, cursor=self.cursor, has_more=self.has_more),
        )
