"""GraphQL types of changes."""

from datetime import datetime
from typing import Any

import strawberry

from graph.mailboxes.types import Mailbox
from graph.messages.types import Message
from graph.nodes import node_of
from graph.submission.types import Submission
from graph.types import global_ids
from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.row_mapping import Shape, link
from graph.types.scalars import BigInt, Cursor
from graph.users.types import User
from models.events.journal import ChangeKind, Event
from models.users.tables import LimitKind, UsageLevel
from resolvers.changes.stream_reader import Batch, ResyncReason
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import loaders as message_loaders
from resolvers.submission import create as submission_create
from resolvers.users import loaders as user_loaders


def _user(row: Any) -> User | None:
    return User.maybe(row)


@strawberry.interface(description="One event.")
class Change:
    row: strawberry.Private[Event]
    cursor: Cursor = leaf("Resume after this.")
    at: datetime = leaf("Committed.")
    kind: ChangeKind = leaf("What happened.")
    user: User | None = link("stream_id", user_loaders.by_ids, _user, description="Whose account.")
    origin: str | None = leaf(
        "Session id or idempotency key of the cause, to recognise one's own echo."
    )


def _common(event: Event) -> dict[str, Any]:
    """Return the fields that the types of all changes have."""
    return {
        "row": event,
        "cursor": Cursor(event.position),
        "at": event.at,
        "kind": event.kind,
        "origin": event.origin,
    }


@strawberry.type(description="Folder made, changed, renamed, deleted.")
class MailboxChange(Change):
    mailbox_id: strawberry.ID = leaf("Also after deletion.")
    mailbox: Mailbox | None = link(
        "object_id",
        mailbox_loaders.by_ids,
        Mailbox.maybe,
        description="As it is now, null when deleted.",
    )
    path: str | None = leaf("Path after the event.")
    old_path: str | None = leaf("Path before a renaming.")
    modseq: BigInt = leaf("Modification sequence of the event.")

    @classmethod
    def of(cls, event: Event) -> "MailboxChange":
        """Return the GraphQL object of an event of a mailbox."""
        return cls(
            **_common(event),
            mailbox_id=global_ids.encode("Mailbox", event.object_id),
            path=event.facts.get("path"),
            old_path=event.facts.get("oldPath"),
            modseq=BigInt(event.modseq),
        )


def _box(key: int | None) -> strawberry.ID | None:
    """Return the global ID of a mailbox; None without an id."""
    return global_ids.encode("Mailbox", key) if key else None


@strawberry.type(description="Message added, changed, moved, deleted, archived, restored.")
class MessageChange(Change):
    message_id: strawberry.ID = leaf("Also after deletion.")
    message: Message | None = link(
        "object_id",
        message_loaders.by_ids,
        Message.maybe,
        description="As it is now, null when gone.",
    )
    mailbox_id: strawberry.ID | None = leaf("Folder it is in, or was in.")
    uid: BigInt | None = leaf("Uid there.")
    from_mailbox_id: strawberry.ID | None = leaf("Folder it left.")
    from_uid: BigInt | None = leaf("Uid it had there.")
    flags: list[str] | None = leaf("Flags after the event.")
    modseq: BigInt = leaf("Modification sequence of the event.")

    @classmethod
    def of(cls, event: Event) -> "MessageChange":
        """Return the GraphQL object of an event of a message."""
        facts = event.facts
        return cls(
            **_common(event),
            message_id=global_ids.encode("Message", event.object_id),
            mailbox_id=_box(facts.get("mailbox")),
            uid=facts.get("uid"),
            from_mailbox_id=_box(facts.get("fromMailbox")),
            from_uid=facts.get("fromUid"),
            flags=facts.get("flags"),
            modseq=BigInt(event.modseq),
        )


@strawberry.type(description="A message on its way.")
class SubmissionChange(Change):
    submission: Submission | None = link(
        "object_id",
        submission_create.by_ids,
        Submission.maybe,
        description="As it is now, null when gone.",
    )

    @classmethod
    def of(cls, event: Event) -> "SubmissionChange":
        """Return the GraphQL object of an event of a submission."""
        return cls(**_common(event))


@strawberry.type(
    description="A limit was reached, or storage has passed a mark: told once, and again only "
    "after it was below. What was turned away for it is told once in the period, or in a day."
)
class LimitChange(Change):
    limit: LimitKind = leaf("Which.")
    level: UsageLevel = leaf("How far it was used up.")
    used: BigInt = leaf("In use then; bytes of STORAGE.")
    allowed: BigInt = leaf("The limit then; bytes of STORAGE.")
    refused: bool = leaf("A message was turned away; false: one went through and used it up.")
    resets_at: datetime | None = leaf("When the period ends; null of STORAGE.")

    @classmethod
    def of(cls, event: Event) -> "LimitChange":
        """Return the GraphQL object of an event for a limit that was reached."""
        facts, until = event.facts, event.facts["resetsAt"]
        return cls(
            **_common(event),
            limit=LimitKind(facts["limit"]),
            level=UsageLevel(facts["level"]),
            used=BigInt(facts["used"]),
            allowed=BigInt(facts["allowed"]),
            refused=facts["refused"],
            resets_at=until and datetime.fromisoformat(until),
        )


@strawberry.type(description="Everything else about an account.")
class AccountChange(Change):
    node_id: strawberry.ID = leaf("Id of what changed.")

    @field("What changed, null when deleted.")
    async def node(self, info: Info) -> Shape | None:
        return await node_of(info, self.node_id)

    @classmethod
    def of(cls, event: Event) -> "AccountChange":
        """Return the GraphQL object of an event of any other object."""
        return cls(
            **_common(event), node_id=global_ids.encode(KINDS_CHANGED[event.kind], event.object_id)
        )


KINDS_CHANGED = {
    ChangeKind.ADDRESS_CHANGED: "Address",
    ChangeKind.FILE_CHANGED: "File",
    ChangeKind.FILTER_CHANGED: "Filter",
    ChangeKind.IDENTITY_CHANGED: "Identity",
    ChangeKind.USER_CHANGED: "User",
    ChangeKind.DOMAIN_CHANGED: "Domain",
    ChangeKind.TASK_CHANGED: "Task",
    ChangeKind.SECURITY_EVENT: "AuthEvent",
    ChangeKind.KEY_VALUE_CHANGED: "KeyValue",
    ChangeKind.LABEL_CHANGED: "Label",
    ChangeKind.AUTOREPLY_CHANGED: "Autoreply",
    ChangeKind.SIEVE_CHANGED: "SieveScript",
    ChangeKind.THREAD_CHANGED: "Thread",
    ChangeKind.SAVED_SEARCH_CHANGED: "SavedSearch",
    ChangeKind.SENDER_RULE_CHANGED: "SenderRule",
    ChangeKind.QUARANTINE_CHANGED: "QuarantineItem",
    ChangeKind.CONNECTOR_CHANGED: "Connector",
    ChangeKind.DKIM_CHANGED: "DkimKey",
    ChangeKind.RELAY_HOST_CHANGED: "RelayHost",
    ChangeKind.TRANSPORT_CHANGED: "Transport",
    ChangeKind.TLS_POLICY_CHANGED: "TlsPolicy",
    ChangeKind.FORWARDING_HOST_CHANGED: "ForwardingHost",
    ChangeKind.COMPOSE_REQUESTED: "ComposeRequest",
    ChangeKind.CERTIFICATE_CHANGED: "Certificate",
}


@strawberry.type(description="The stream cannot go on from the cursor given.")
class ResyncChange(Change):
    reason: ResyncReason = leaf("Fetch state again, then go on from cursor.")


def change_of(event: Event) -> Change:
    """Return the event as an object of its GraphQL type."""
    if event.kind.startswith("MAILBOX_"):
        return MailboxChange.of(event)
    if event.kind.startswith("MESSAGE_"):
        return MessageChange.of(event)
    if event.kind is ChangeKind.SUBMISSION_CHANGED:
        return SubmissionChange.of(event)
    if event.kind is ChangeKind.LIMIT_REACHED:
        return LimitChange.of(event)
    return AccountChange.of(event)


@strawberry.type(description="Events of one wake-up, in order.")
class ChangeBatch:
    events: list[Change] = leaf("The events.")
    cursor: Cursor = leaf("After the last event; also moves on when nothing visible happened.")
    has_more: bool = leaf("More is coming at once (catching up).")

    @classmethod
    def of(cls, batch: Batch, at: datetime) -> "ChangeBatch":
        """Return the GraphQL object of a batch.

        If the client must resync, the batch has one ResyncChange with the time `now`.
        """
        events = [change_of(event) for event in batch.events]
        cursor = Cursor(batch.position)
        if batch.resync:
            (stream, *_) = batch.position
            event = Event(ChangeKind.RESYNC, 0, at, stream, batch.position, {}, None)
            events = [ResyncChange(**_common(event), reason=batch.resync)]
        return cls(events=events, cursor=cursor, has_more=batch.more)
