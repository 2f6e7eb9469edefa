"""Read the new messages of push channels: received, unread, and in a mailbox of the channel."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, and_, or_, select
from sqlmodel import col

from mail import mime
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.message_open import open_messages_and_log_damage
from mail.text.bounded_regex import BoundedRegex
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW, Change, JournalEvent
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message, Thread
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from resolvers.submission.sender_patterns import matches_sender_pattern

MAX_CHANGES = 1000  # of the journal, in one statement
MAX_HEADERS = 20  # of messages, in one statement
MAX_AGE = timedelta(days=1)  # older messages are not pushed
MESSAGE_COLUMNS = ("id", "mailbox_id", "subject", "from_name", "from_address", "to", "message_id")
SILENT_USES = (SpecialUse.JUNK, SpecialUse.TRASH)
URGENT_FIELDS = {"importance": "high", "priority": "urgent", "x-msmail-priority": "high"}
URGENT_PRIORITIES = ("1", "2")  # first character of X-Priority

RowReader = Callable[[Select[*tuple[Any, ...]]], Awaitable[Sequence[ColumnRow]]]


@dataclass(frozen=True, slots=True)
class PushMessage:
    """A message for a channel and its position in the journal."""

    message: ColumnRow
    position: int


@dataclass(frozen=True, slots=True)
class ChannelNewMessages:
    """The new messages for a channel, oldest first. The journal was read up to `position`."""

    messages: Sequence[PushMessage]
    position: int


def is_received_mail(change: ColumnRow | JournalEvent) -> bool:
    """True if a message was delivered to the user, not stored or moved by a client."""
    return change.type is EventType.MESSAGE_RECEIVED


async def read_notifiable_messages(
    read_rows: RowReader, user_ids: Collection[int], message_ids: Collection[int]
) -> dict[int, ColumnRow]:
    """Read those of these messages that are unread, in a thread that is not muted, and not in Junk.

    Messages in Trash are left out too. Adds `special_use` of the mailbox to the columns.
    """
    special_use = col(Mailbox.special_use)
    statement = (
        select(*select_columns(Message, MESSAGE_COLUMNS), special_use)
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .join(Thread, col(Thread.id) == col(Message.thread_id))
        .where(~col(Message.seen), ~col(Message.deleted), ~col(Thread.muted))
        .where(
            col(Message.user_id).in_(sorted(user_ids)),
            special_use.is_(None) | special_use.not_in(SILENT_USES),
        )
    )
    rows_by_id: dict[int, ColumnRow] = {}
    ids = sorted(message_ids)
    for start in range(0, len(ids), MAX_IDS_PER_ROW):
        is_in_batch = col(Message.id).in_(ids[start : start + MAX_IDS_PER_ROW])
        rows_by_id |= {row.id: row for row in await read_rows(statement.where(is_in_batch))}
    return rows_by_id


async def read_new_messages_by_channel(
    environment: Environment, channels: Sequence[ColumnRow]
) -> dict[int, ChannelNewMessages]:
    """Read new messages for channels, by channel id, with a fixed number of statements.

    The column `last` of each channel is the end of its user's journal. Channels are left out if
    the changes of other channels fill the statement.
    """
    changes = await _read_message_received_changes(environment, channels)
    last_read = (changes[-1].stream_id, changes[-1].last) if len(changes) == MAX_CHANGES else None
    received_changes = [change for change in changes if is_received_mail(change)]
    message_ids = {key for change in received_changes for key in change.ids}
    user_ids = {change.stream_id for change in received_changes}
    rows = (
        await read_notifiable_messages(environment.database.read, user_ids, message_ids)
        if message_ids
        else {}
    )
    existing_mailbox_ids = (
        await _read_existing_mailbox_ids(environment, channels) if rows else set()
    )
    news_by_channel: dict[int, ChannelNewMessages] = {}
    for channel in channels:
        position = channel.last
        if last_read and channel.user_id > last_read[0]:
            continue
        if last_read and channel.user_id == last_read[0]:
            position = last_read[1]
        is_wanted = _message_filter(channel, existing_mailbox_ids)
        news_by_channel[channel.id] = ChannelNewMessages(
            [
                PushMessage(rows[key], position)
                for change in received_changes
                if change.stream_id == channel.user_id
                for position, key in enumerate(change.ids, change.last - len(change.ids) + 1)
                if position > channel.number and key in rows
                if rows[key].mailbox_id == change.facts["mailbox"] and is_wanted(rows[key])
            ],
            position,
        )
    return news_by_channel


async def _read_message_received_changes(
    environment: Environment, channels: Sequence[ColumnRow]
) -> Sequence[ColumnRow]:
    ranges = (
        and_(
            col(Change.stream_id) == channel.user_id,
            col(Change.last).between(channel.number + 1, channel.last),
        )
        for channel in channels
    )
    statement = select(*select_columns(Change)).where(
        or_(*ranges),
        col(Change.type) == EventType.MESSAGE_RECEIVED,
        col(Change.at) >= environment.now() - MAX_AGE,
    )
    order = (col(Change.stream_id), col(Change.last))
    return await environment.database.read(statement.order_by(*order).limit(MAX_CHANGES))


async def _read_existing_mailbox_ids(
    environment: Environment, channels: Sequence[ColumnRow]
) -> set[int]:
    """Return the ids of the channels' mailboxes that still exist."""
    mailbox_ids = sorted({key for channel in channels for key in channel.mailboxes})
    existing_ids: set[int] = set()
    for start in range(0, len(mailbox_ids), MAX_IDS_PER_ROW):
        is_in_batch = col(Mailbox.id).in_(mailbox_ids[start : start + MAX_IDS_PER_ROW])
        existing_ids |= {
            row.id
            for row in await environment.database.read(select(col(Mailbox.id)).where(is_in_batch))
        }
    return existing_ids


def _message_filter(
    channel: ColumnRow, existing_mailbox_ids: Collection[int]
) -> Callable[[ColumnRow], bool]:
    """Return a predicate for messages that match the mailboxes and senders of a channel.

    If no mailbox of the channel exists, only messages in the INBOX match.
    """
    mailbox_ids = set(channel.mailboxes).intersection(existing_mailbox_ids)
    regex = BoundedRegex(channel.senders_regex) if channel.senders_regex else None
    accepts_all_senders = not channel.senders and regex is None

    def is_wanted(message: ColumnRow) -> bool:
        is_in_mailbox = (
            message.mailbox_id in mailbox_ids
            if mailbox_ids
            else message.special_use is SpecialUse.INBOX
        )
        if not is_in_mailbox or accepts_all_senders:
            return is_in_mailbox
        sender = message.from_address or ""
        return matches_sender_pattern(channel.senders, sender) or (
            regex is not None and regex.is_found_in(sender)
        )

    return is_wanted


async def read_urgent_message_ids(
    environment: Environment, message_ids: Collection[int]
) -> set[int]:
    """Return the ids of messages that are marked as urgent in their headers.

    By X-Priority, Importance (RFC 4021, section 2.1.54) or Priority (section 2.1.55).
    """
    urgent_ids: set[int] = set()
    ids = sorted(message_ids)
    for start in range(0, len(ids), MAX_HEADERS):
        statement = select(*select_columns(Message, ("id", "blob_id", "mime_structure")))
        statement = statement.where(col(Message.id).in_(ids[start : start + MAX_HEADERS]))
        for stored in await open_messages_and_log_damage(
            environment, await environment.database.read(statement)
        ):
            with suppress(CorruptBlob):  # a damaged message is logged when it is opened
                if await stored.run_on_source(_urgency_reader(stored.structure)):
                    urgent_ids.add(stored.row.id)
    return urgent_ids


def _urgency_reader(structure: mime.ParsedPart) -> Callable[[mime.ByteSource], bool]:
    """Return a predicate that reads from the header fields whether the message is urgent."""

    def is_urgent(source: mime.ByteSource) -> bool:
        fields = mime.decoded_fields(source, structure)
        values = {field.name.lower(): field.value.strip().lower() for field in fields}
        has_urgent_field = any(
            values.get(name) == urgent_value for name, urgent_value in URGENT_FIELDS.items()
        )
        return has_urgent_field or values.get("x-priority", "").startswith(URGENT_PRIORITIES)

    return is_urgent
