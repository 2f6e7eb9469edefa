"""A replica of an account that is read once and then updated by events only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import encode
from mail.storage.message_flags import SYSTEM_FLAGS, flags
from models.events.journal import Change, Stream, events
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import picked
from models.store.database import Database

FIELDS = """cursor events { cursor kind
  ... on MailboxChange { folder: mailboxId path oldPath modseq mailbox { id path } }
  ... on MessageChange { messageId mailboxId uid fromMailboxId fromUid flags modseq }
  ... on ResyncChange { reason } }"""
SEEN = "\\Seen"
TOLD = 12  # events shown for an object that differs
COMPLAINTS = 20  # per replica
HERE = ("MESSAGE_ADDED", "MESSAGE_RESTORED")
GONE = ("MESSAGE_ARCHIVED", "MESSAGE_DELETED")

Event = Mapping[str, Any]
Folder = tuple[str, int, int]  # path, messages, unseen ones
Letter = tuple[str, int, tuple[str, ...], int]  # folder, uid, flags in order, modseq
State = tuple[dict[str, Folder], dict[str, Letter]]  # folders and messages, by id


class Lost(Exception):
    """The stream can't continue from the replica's position: the account must be read again."""


def number_of(cursor: str) -> int:
    """Return the number of the event that a cursor of a single stream points behind.

    Raises ValueError for an unknown cursor version.
    """
    version, _stream, number = cursor.split(".")
    if version != "1":
        raise ValueError(f"not a cursor that we know: {cursor}")
    return int(number)


@dataclass
class Replica:
    """Mailboxes and messages as the events describe them, without reading them again.

    From the event number `exact_from` on, the state before each event is known exactly. A
    snapshot of many pages has parts that are newer than its cursor, so it may contain the
    effects of earlier events.
    """

    cursor: str
    paths: dict[str, str] = field(default_factory=dict)  # by id
    letters: dict[str, Letter] = field(default_factory=dict)
    sure: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def at(self) -> int:
        """The number of the newest applied event."""
        return number_of(self.cursor)

    def copy(self) -> "Replica":
        """Return an independent copy."""
        return replace(
            self, paths=dict(self.paths), letters=dict(self.letters), wrong=list(self.wrong)
        )

    def take(self, told: Sequence[Event], cursor: str) -> None:
        """Apply a batch of events and the cursor after it. Raises ResyncRequired."""
        for event in told:
            if event["kind"] == "RESYNC":
                raise Lost(event["reason"])
            number = number_of(event["cursor"])
            if number != self.at + 1:
                self._complain(f"after event {self.at} came {number}, a {event['kind']}")
            self.cursor = event["cursor"]
            self._apply(event, number)
        if number_of(cursor) != self.at:
            self._complain(f"behind event {self.at} the batch has the cursor {cursor}")
            self.cursor = cursor

    def _complain(self, text: str) -> None:
        if len(self.wrong) < COMPLAINTS:
            self.wrong.append(text)

    def _apply(self, event: Event, number: int) -> None:
        if event.get("modseq", number) < number:
            self._complain(f"event {number} has the modseq {event['modseq']}")
        if event["kind"].startswith("MAILBOX_"):
            self._folder(event, number)
        elif event["kind"].startswith("MESSAGE_"):
            self._letter(event, number)

    def _folder(self, event: Event, number: int) -> None:
        kind, key, path = event["kind"], event["folder"], event["path"]
        before, now = self.paths.get(key), event["mailbox"]
        if number > self.sure:
            expected = {"MAILBOX_CREATED": None, "MAILBOX_RENAMED": event["oldPath"]}
            if before != expected.get(kind, before) or (
                before is None and kind != "MAILBOX_CREATED"
            ):
                self._complain(f"event {number}, {kind} of {key}: it was at {before}")
            if kind == "MAILBOX_DELETED" and any(one[0] == key for one in self.letters.values()):
                self._complain(f"event {number}: folder {key} went with messages in it")
            if now and now["id"] != key:
                self._complain(f"event {number} of {key} has the folder {now['id']} in it")
        if kind == "MAILBOX_DELETED":
            self.paths.pop(key, None)
        elif path is not None:
            self.paths[key] = path

    def _letter(self, event: Event, number: int) -> None:
        kind, key = event["kind"], event["messageId"]
        here = (event["mailboxId"], event["uid"])
        if number > self.sure:
            known = self.letters.get(key)
            before = known and known[:2]
            expected: Any = here
            if kind in HERE or event["mailboxId"] is None:  # an archived message
                expected = None
            elif event["fromMailboxId"] is not None:
                expected = (event["fromMailboxId"], event["fromUid"])
            if before != expected:
                self._complain(
                    f"event {number}, {kind} of {key}: it was at {before}, not {expected}"
                )
        if kind in GONE:
            self.letters.pop(key, None)
        elif event["flags"] is None:
            self._complain(f"event {number}, {kind} of {key}, tells no flags")
        else:
            named = tuple(sorted(event["flags"]))
            self.letters[key] = (*here, named, event["modseq"])

    @property
    def state(self) -> State:
        """Mailboxes with the counters computed from the messages, and the messages."""
        total, unseen = dict.fromkeys(self.paths, 0), dict.fromkeys(self.paths, 0)
        for box, _uid, named, _modseq in self.letters.values():
            total[box] = total.get(box, 0) + 1
            unseen[box] = unseen.get(box, 0) + (SEEN not in named)
        folders = {key: (path, total[key], unseen[key]) for key, path in self.paths.items()}
        return folders, self.letters


async def stored(database: Database, user_id: int) -> State:
    """Read an account from the database."""
    boxes = select(*picked(Mailbox, {"id", "path", "total", "unseen"}))
    columns = {"id", "mailbox_id", "uid", "modseq", "keywords", *SYSTEM_FLAGS}
    letters = select(*picked(Message, columns)).where(col(Message.mailbox_id).is_not(None))
    return (
        {
            encode("Mailbox", row.id): (row.path, row.total, row.unseen)
            for row in await database.read(boxes.where(col(Mailbox.user_id) == user_id))
        },
        {
            encode("Message", row.id): (
                encode("Mailbox", row.mailbox_id),
                row.uid,
                tuple(sorted(flags(row))),
                row.modseq,
            )
            for row in await database.read(letters.where(col(Message.user_id) == user_id))
        },
    )


def differences(held: State, truth: State) -> dict[str, str]:
    """Return the differences between replica and database, by object ID."""
    found: dict[str, str] = {}
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (held[0], truth[0]),
        (held[1], truth[1]),
    ]
    for have, are in pairs:
        for key in sorted({*have, *are}):
            if have.get(key) != are.get(key):
                found[key] = f"{key} is {are.get(key)}, and held to be {have.get(key)}"
    return found


async def numbers(database: Database, user_id: int) -> tuple[int, int]:
    """Return the numbers of the newest event of an account and of the newest deleted one."""
    asked = select(col(Stream.last), col(Stream.gone)).where(col(Stream.id) == user_id)
    (row,) = await database.read(asked)
    return row.last, row.gone


async def concerning(database: Database, user_id: int, keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the newest stored events of these mailboxes and messages, as text by ID."""
    _, gone = await numbers(database, user_id)
    found: dict[str, list[str]] = {key: [] for key in keys}
    asked = select(*picked(Change)).where(col(Change.stream_id) == user_id)
    rows = await database.read(asked.order_by(col(Change.last)))
    for event in events(rows, {user_id: gone}):
        kind = "Mailbox" if event.kind.startswith("MAILBOX_") else "Message"
        key = encode(kind, event.object_id)
        if key in found:
            text = f"{event.position[user_id]} {event.kind} {dict(event.facts)}"
            found[key] = [*found[key][1 - TOLD :], text]
    return found


async def gaps(database: Database, user_id: int) -> list[str]:
    """Return where the event numbers in an account's journal are not consecutive."""
    last, before = await numbers(database, user_id)
    asked = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == user_id)
    found = []
    for row in await database.read(asked.order_by(col(Change.last))):
        if row.last - len(row.ids) != before:
            found.append(f"the change up to {row.last} begins behind {row.last - len(row.ids)}")
            found[-1] += f", the one before it ends at {before}"
        before = row.last
    if before != last:
        found.append(f"the stream is at {last}, and its last change at {before}")
    return found
