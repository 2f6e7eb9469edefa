"""What push channels are told of: mail that was delivered, lies where they look, and is unread."""

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

CHANGES = 1000  # of the journal, at once
HEADS = 20  # of messages, at once
NEW_FOR = timedelta(days=1)  # what is older is pushed no more
NAMES = ("id", "mailbox_id", "subject", "from_name", "from_address", "to", "message_id")
UNTOLD = (SpecialUse.JUNK, SpecialUse.TRASH)
HURRY = {"importance": "high", "priority": "urgent", "x-msmail-priority": "high"}
URGENT = ("1", "2")  # how X-Priority begins

Read = Callable[[Select[*tuple[Any, ...]]], Awaitable[Sequence[Picked]]]


@dataclass(frozen=True, slots=True)
class News:
    """A message for a channel, and its number in the journal."""

    message: Picked
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """What is new for a channel, oldest first; up to `reached` the journal has been read."""

    news: Sequence[News]
    reached: int


def received(change: Picked | Event) -> bool:
    """Whether this is mail that came from outside, not what was put or moved there."""
    return change.kind is ChangeKind.MESSAGE_ADDED and change.facts.get("did") == "received"


async def unread(read: Read, owners: Collection[int], keys: Collection[int]) -> dict[int, Picked]:
    """Those of these messages of accounts that are there, unread, not muted, in no Junk or Trash.

    With their columns, `special_use` of the folder is.
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
    """What is new for these channels, by their ids; as many statements for many as for one.

    Each row has `last`, how far the journal of its account goes. Those that nothing is read of
    this time, since there is too much for others, are left out.
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
    """Those of their folders that are still there."""
    named = sorted({key for channel in channels for key in channel.mailboxes})
    found: set[int] = set()
    for start in range(0, len(named), LONGEST):
        part = col(Mailbox.id).in_(named[start : start + LONGEST])
        found |= {row.id for row in await world.database.read(select(col(Mailbox.id)).where(part))}
    return found


def _wanted(channel: Picked, living: Collection[int]) -> Callable[[Picked], bool]:
    """Whether a message lies in a folder of the channel, and comes from a sender of its."""
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
    """Those of these messages that their senders have marked as urgent.

    By X-Priority, Importance (RFC 4021, section 2.1.54) or Priority (section 2.1.55).
    """
    found: set[int] = set()
    ids = sorted(keys)
    for start in range(0, len(ids), HEADS):
        asked = select(*picked(Message, ("id", "blob_id", "structure")))
        asked = asked.where(col(Message.id).in_(ids[start : start + HEADS]))
        for stored in await sources(world, await world.database.read(asked)):
            with suppress(Corrupt):  # that it is damaged is logged where it is opened
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
