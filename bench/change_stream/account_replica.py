"""A replica of an account that is read once and then updated by events only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import encode
from mail.storage.message_flags import SYSTEM_FLAGS, imap_flags
from models.events.journal import Change, Stream, events_after_positions
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import select_columns
from models.store.database import Database

EVENT_FIELDS = """cursor events { cursor type
  ... on MailboxChange { folder: mailboxId path oldPath modseq mailbox { id path } }
  ... on MessageChange { messageId mailboxId uid fromMailboxId fromUid flags modseq }
  ... on ResyncChange { reason } }"""
SEEN = "\\Seen"
MAX_SHOWN_EVENTS = 12  # events shown for an object that differs
MAX_PROBLEMS = 20  # per replica
ADDING_TYPES = ("MESSAGE_ADDED", "MESSAGE_RECEIVED", "MESSAGE_RESTORED")
REMOVING_TYPES = ("MESSAGE_DELETED", "MESSAGE_PURGED")

EventFields = Mapping[str, Any]


class MailboxState(NamedTuple):
    """The path and the counters of a mailbox."""

    path: str
    message_count: int
    unseen_count: int


class MessageState(NamedTuple):
    """The mailbox of a message, and its values there."""

    mailbox_id: str
    uid: int
    flags: tuple[str, ...]  # sorted
    modseq: int


AccountState = tuple[dict[str, MailboxState], dict[str, MessageState]]  # by object ID


class ResyncRequired(Exception):
    """The stream can't continue from the replica's position: the account must be read again."""


def event_number_from_cursor(cursor: str) -> int:
    """Return the number of the event that a cursor of a single stream points behind.

    Raises ValueError for an unknown cursor version.
    """
    version, _stream, number = cursor.split(".")
    if version != "1":
        raise ValueError(f"not a cursor that we know: {cursor}")
    return int(number)


@dataclass
class AccountReplica:
    """Mailboxes and messages as the events describe them, without reading them again.

    From the event number `exact_from` on, the state before each event is known exactly. A
    snapshot of many pages has parts that are newer than its cursor, so it may contain the
    effects of earlier events.
    """

    cursor: str
    path_by_mailbox: dict[str, str] = field(default_factory=dict)  # by id
    message_states: dict[str, MessageState] = field(default_factory=dict)
    exact_from: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def event_number(self) -> int:
        """The number of the newest applied event."""
        return event_number_from_cursor(self.cursor)

    def copy_replica(self) -> "AccountReplica":
        """Return an independent copy."""
        return replace(
            self,
            path_by_mailbox=dict(self.path_by_mailbox),
            message_states=dict(self.message_states),
            problems=list(self.problems),
        )

    def apply_batch(self, batch: Sequence[EventFields], cursor: str) -> None:
        """Apply a batch of events and the cursor after it. Raises ResyncRequired."""
        for event in batch:
            if event["type"] == "RESYNC":
                raise ResyncRequired(event["reason"])
            number = event_number_from_cursor(event["cursor"])
            if number != self.event_number + 1:
                self._add_problem(
                    f"event {self.event_number} was followed by {number}, {event['type']}"
                )
            self.cursor = event["cursor"]
            self._apply_event(event, number)
        if event_number_from_cursor(cursor) != self.event_number:
            self._add_problem(f"after event {self.event_number} the batch has the cursor {cursor}")
            self.cursor = cursor

    def _add_problem(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def _apply_event(self, event: EventFields, number: int) -> None:
        if event.get("modseq", number) < number:
            self._add_problem(f"event {number} has the modseq {event['modseq']}")
        if event["type"].startswith("MAILBOX_"):
            self._apply_mailbox_event(event, number)
        elif event["type"].startswith("MESSAGE_"):
            self._apply_message_event(event, number)

    def _apply_mailbox_event(self, event: EventFields, number: int) -> None:
        event_type, key, path = event["type"], event["folder"], event["path"]
        before, now = self.path_by_mailbox.get(key), event["mailbox"]
        if number > self.exact_from:
            expected = {"MAILBOX_CREATED": None, "MAILBOX_RENAMED": event["oldPath"]}
            if before != expected.get(event_type, before) or (
                before is None and event_type != "MAILBOX_CREATED"
            ):
                self._add_problem(f"event {number}, {event_type} of {key}: it was at {before}")
            if event_type == "MAILBOX_DELETED" and any(
                state.mailbox_id == key for state in self.message_states.values()
            ):
                self._add_problem(f"event {number}: folder {key} went with messages in it")
            if now and now["id"] != key:
                self._add_problem(f"event {number} of {key} has the folder {now['id']} in it")
        if event_type == "MAILBOX_DELETED":
            self.path_by_mailbox.pop(key, None)
        elif path is not None:
            self.path_by_mailbox[key] = path

    def _apply_message_event(self, event: EventFields, number: int) -> None:
        event_type, key = event["type"], event["messageId"]
        mailbox_and_uid = (event["mailboxId"], event["uid"])
        if number > self.exact_from:
            known_state = self.message_states.get(key)
            before = known_state and known_state[:2]
            expected: Any = mailbox_and_uid
            if event_type in ADDING_TYPES or event["mailboxId"] is None:  # an archived message
                expected = None
            elif event["fromMailboxId"] is not None:
                expected = (event["fromMailboxId"], event["fromUid"])
            if before != expected:
                self._add_problem(
                    f"event {number}, {event_type} of {key}: it was at {before}, not {expected}"
                )
        if event_type in REMOVING_TYPES:
            self.message_states.pop(key, None)
        elif event["flags"] is None:
            self._add_problem(f"event {number}, {event_type} of {key}, tells no flags")
        else:
            flags = tuple(sorted(event["flags"]))
            self.message_states[key] = MessageState(*mailbox_and_uid, flags, event["modseq"])

    @property
    def account_state(self) -> AccountState:
        """Mailboxes with the counters computed from the messages, and the messages."""
        total = dict.fromkeys(self.path_by_mailbox, 0)
        unseen = dict.fromkeys(self.path_by_mailbox, 0)
        for state in self.message_states.values():
            mailbox_id = state.mailbox_id
            total[mailbox_id] = total.get(mailbox_id, 0) + 1
            unseen[mailbox_id] = unseen.get(mailbox_id, 0) + (SEEN not in state.flags)
        mailbox_states = {
            key: MailboxState(path, total[key], unseen[key])
            for key, path in self.path_by_mailbox.items()
        }
        return mailbox_states, self.message_states


async def read_account_state(database: Database, user_id: int) -> AccountState:
    """Read an account from the database."""
    mailboxes = select(*select_columns(Mailbox, {"id", "path", "message_count", "unseen_count"}))
    columns = {"id", "mailbox_id", "uid", "modseq", "keywords", *SYSTEM_FLAGS}
    messages = select(*select_columns(Message, columns)).where(col(Message.mailbox_id).is_not(None))
    return (
        {
            encode("Mailbox", row.id): MailboxState(row.path, row.message_count, row.unseen_count)
            for row in await database.read(mailboxes.where(col(Mailbox.user_id) == user_id))
        },
        {
            encode("Message", row.id): MessageState(
                encode("Mailbox", row.mailbox_id),
                row.uid,
                tuple(sorted(imap_flags(row))),
                row.modseq,
            )
            for row in await database.read(messages.where(col(Message.user_id) == user_id))
        },
    )


def differences_by_id(replica_state: AccountState, stored_state: AccountState) -> dict[str, str]:
    """Return the differences between replica and database, by object ID."""
    differences: dict[str, str] = {}
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (replica_state[0], stored_state[0]),
        (replica_state[1], stored_state[1]),
    ]
    for replica_states, stored_states in pairs:
        for key in sorted({*replica_states, *stored_states}):
            if replica_states.get(key) != stored_states.get(key):
                differences[key] = (
                    f"{key} is {stored_states.get(key)}, and held to be {replica_states.get(key)}"
                )
    return differences


async def read_stream_numbers(database: Database, user_id: int) -> tuple[int, int]:
    """Return the numbers of the newest event of an account and of the newest deleted one."""
    statement = select(col(Stream.last), col(Stream.pruned_position)).where(
        col(Stream.id) == user_id
    )
    (row,) = await database.read(statement)
    return row.last, row.pruned_position


async def events_by_object_id(
    database: Database, user_id: int, object_ids: Iterable[str]
) -> dict[str, list[str]]:
    """Return the newest stored events of these mailboxes and messages, as text by ID."""
    _, newest_deleted = await read_stream_numbers(database, user_id)
    texts_by_id: dict[str, list[str]] = {key: [] for key in object_ids}
    statement = select(*select_columns(Change)).where(col(Change.stream_id) == user_id)
    rows = await database.read(statement.order_by(col(Change.last)))
    for event in events_after_positions(rows, {user_id: newest_deleted}):
        type_name = "Mailbox" if event.type.startswith("MAILBOX_") else "Message"
        key = encode(type_name, event.object_id)
        if key in texts_by_id:
            text = f"{event.positions[user_id]} {event.type} {dict(event.facts)}"
            texts_by_id[key] = [*texts_by_id[key][1 - MAX_SHOWN_EVENTS :], text]
    return texts_by_id


async def find_journal_gaps(database: Database, user_id: int) -> list[str]:
    """Return where the event numbers in an account's journal are not consecutive."""
    last, before = await read_stream_numbers(database, user_id)
    statement = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == user_id)
    gaps = []
    for row in await database.read(statement.order_by(col(Change.last))):
        if row.last - len(row.ids) != before:
            gaps.append(f"the change up to {row.last} begins behind {row.last - len(row.ids)}")
            gaps[-1] += f", the one before it ends at {before}"
        before = row.last
    if before != last:
        gaps.append(f"the stream is at {last}, and its last change at {before}")
    return gaps
