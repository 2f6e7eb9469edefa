"""Read the new messages of push channels: received, unread, and in a mailbox of the channel."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, and_, or_, select
from sqlmodel import col

from mail import mime
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import sources
from mail.text.bounded_regex import Expression
from models.events.journal import LONGEST, Change, ChangeKind, Event
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message, Thread
from models.runtime.environment import World
from models.store.columns import Picked, picked
from resolvers.submission.sender_patterns import permitted

CHANGES = 1000  # of the journal, in one statement
HEADS = 20  # of messages, in one statement
NEW_FOR = timedelta(days=1)  # older messages are not pushed
NAMES = ("id", "mailbox_id", "subject", "from_name", "from_address", "to", "message_id")
UNTOLD = (SpecialUse.JUNK, SpecialUse.TRASH)
HURRY = {"importance": "high", "priority": "urgent", "x-msmail-priority": "high"}
URGENT = ("1", "2")  # first character of X-Priority

Read = Callable[[Select[*tuple[Any, ...]]], Awaitable[Sequence[Picked]]]


@dataclass(frozen=True, slots=True)
class News:
    """A message for a channel and its position in the journal."""

    message: Picked
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """The new messages for a channel, oldest first. The journal was read up to `position`."""

    news: Sequence[News]
    reached: int


def received(change: Picked | Event) -> bool:
    """True if a message was received from outside, not stored or moved by a client."""
    return change.kind is ChangeKind.MESSAGE_ADDED and change.facts.get("did") == "received"


async def unread(read: Read, owners: Collection[int], keys: Collection[int]) -> dict[int, Picked]:
    """Read those of these messages that are unread, in a thread that is not muted, and not in Junk.

    Messages in Trash are left out too. Adds `special_use` of the mailbox to the columns.
    """
    use = col(Mailbox.special_use)
    asked = (
        select(*picked(Message, NAMES), use)
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .join(Thread, col(Thread.id) == col(Message.thread_id))
        .where(~col(Message.seen), ~col(Message.deleted), ~col(Thread.muted))
        .where(col(Message.user_id).in_(sorted(owners)), use.is_(None) | use.not_in(UNTOLD))
    )
    found: dict[int, Picked] = {}
    ids = sorted(keys)
    for start in range(0, len(ids), LONGEST):
        part = col(Message.id).in_(ids[start : start + LONGEST])
        found |= {row.id: row for row in await read(asked.where(part))}
    return found


async def look(world: World, channels: Sequence[Picked]) -> dict[int, Found]:
    """Read new messages for channels, by channel id, with a fixed number of statements.

    The column `last` of each channel is the end of its user's journal. Channels are left out if
    the changes of other channels fill the statement.
    """
    changes = await _changes(world, channels)
    cut = (changes[-1].stream_id, changes[-1].last) if len(changes) == CHANGES else None
    mail = [change for change in changes if received(change)]
    keys = {key for change in mail for key in change.ids}
    owners = {change.stream_id for change in mail}
    rows = await unread(world.database.read, owners, keys) if keys else {}
    living = await _living(world, channels) if rows else set()
    found: dict[int, Found] = {}
    for channel in channels:
        reached = channel.last
        if cut and channel.user_id > cut[0]:
            continue
        if cut and channel.user_id == cut[0]:
            reached = cut[1]
        wanted = _wanted(channel, living)
        found[channel.id] = Found(
            [
                News(rows[key], change.last)
                for change in mail
                if change.stream_id == channel.user_id and change.last > channel.number
                for key in change.ids
                if key in rows
                if rows[key].mailbox_id == change.facts["mailbox"] and wanted(rows[key])
            ],
            reached,
        )
    return found


async def _changes(world: World, channels: Sequence[Picked]) -> Sequence[Picked]:
    later = (
        and_(
            col(Change.stream_id) == channel.user_id,
            col(Change.last).between(channel.number + 1, channel.last),
        )
        for channel in channels
    )
    asked = select(*picked(Change)).where(
        or_(*later),
        col(Change.kind) == ChangeKind.MESSAGE_ADDED,
        col(Change.at) >= world.now() - NEW_FOR,
    )
    order = (col(Change.stream_id), col(Change.last))
    return await world.database.read(asked.order_by(*order).limit(CHANGES))


async def _living(world: World, channels: Sequence[Picked]) -> set[int]:
    """Return the ids of the channels' mailboxes that still exist."""
    named = sorted({key for channel in channels for key in channel.mailboxes})
    found: set[int] = set()
    for start in range(0, len(named), LONGEST):
        part = col(Mailbox.id).in_(named[start : start + LONGEST])
        found |= {row.id for row in await world.database.read(select(col(Mailbox.id)).where(part))}
    return found


def _wanted(channel: Picked, living: Collection[int]) -> Callable[[Picked], bool]:
    """Return a predicate for messages that match the mailboxes and senders of a channel."""
    boxes = set(channel.mailboxes).intersection(living)
    regex = Expression(channel.senders_regex) if channel.senders_regex else None
    anybody = not channel.senders and regex is None

    def wanted(message: Picked) -> bool:
        here = message.mailbox_id in boxes if boxes else message.special_use is SpecialUse.INBOX
        if not here or anybody:
            return here
        sender = message.from_address or ""
        return permitted(channel.senders, sender) or (regex is not None and regex.found_in(sender))

    return wanted


async def urgent(world: World, keys: Collection[int]) -> set[int]:
    """Return the ids of messages that are marked as urgent in their headers.

    By X-Priority, Importance (RFC 4021, section 2.1.54) or Priority (section 2.1.55).
    """
    found: set[int] = set()
    ids = sorted(keys)
    for start in range(0, len(ids), HEADS):
        asked = select(*picked(Message, ("id", "blob_id", "structure")))
        asked = asked.where(col(Message.id).in_(ids[start : start + HEADS]))
        for stored in await sources(world, await world.database.read(asked)):
            with suppress(Corrupt):  # a damaged message is logged when it is opened
                if await stored.examine(_hurried(stored.structure)):
                    found.add(stored.row.id)
    return found


def _hurried(structure: mime.Part) -> Callable[[mime.Source], bool]:
    def read(source: mime.Source) -> bool:
        fields = mime.headers(source, structure)
        told = {each.key.lower(): each.value.strip().lower() for each in fields}
        hurry = any(told.get(name) == word for name, word in HURRY.items())
        return hurry or told.get("x-priority", "").startswith(URGENT)

    return read
