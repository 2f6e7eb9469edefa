"""The worker that adds delivered messages to the text index."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, select, text, tuple_, update
from sqlmodel import col

from mail import mime
from mail.mime import Part, Source
from mail.recipients import contacts
from mail.recipients.contacts import Heard
from mail.search.tokenizer import Words, indexed
from mail.search.tokenizer import words_of as read_words
from mail.storage import message_content
from models.events.wakeups import UNINDEXED
from models.messages.tables import Message
from models.runtime.environment import World
from models.search import text_index
from models.store.columns import picked

BATCH = 200  # messages per transaction
NOTHING = Heard()
IDLE = 15.0  # seconds between two reads without a wake-up
GATHER = 0.2  # seconds in which messages are collected, since each transaction has a fixed cost

Built = TypeVar("Built")
log = logging.getLogger(__name__)

SHOWN = {
    "id", "user_id", "blob_id", "structure", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "attachments", *contacts.SHOWN,
}  # fmt: skip


async def run(world: World) -> None:
    """Index new messages until canceled."""
    with world.wakeups.listen([UNINDEXED]) as bell:
        while True:
            bell.clear()
            try:
                while many := await index(world):
                    if many < BATCH:
                        await asyncio.sleep(GATHER)
            except Exception:  # the worker continues, since the rows still show what to index
                log.exception("the text index could not be filled")
            try:
                async with asyncio.timeout(
                    IDLE
                ):  # unlike wait_for, it can be canceled when a wake-up arrives
                    await bell.wait()
            except TimeoutError:
                continue


async def index(world: World) -> int:
    """Index the next messages, and return their number."""
    # NOT is written as in the partial index: SQLite compares the text.
    asked = select(*picked(Message, SHOWN)).where(text("NOT messages.indexed"))
    rows = await world.database.read(asked.order_by(col(Message.id)).limit(BATCH))
    if not rows:
        return 0
    found = await entries(world, rows)
    await world.apply(lambda turn: put(turn.connection, found))
    return len(rows)


class Entry(NamedTuple):
    """The index values of a message, as of the blob that was read."""

    id: int
    blob_id: int
    words: dict[str, Any]  # parameters of text_index.insert
    heard: Heard = NOTHING  # stored when the message is indexed


async def entries(
    world: World,
    rows: Sequence[Any],
    read: message_content.Read | None = None,
    *,
    again: bool = False,
) -> list[Entry]:
    """Return the index entries of messages; the rows have MESSAGE_COLUMNS.

    With `is_reindex` contacts are not updated, since they were when it was first indexed.
    """
    dialect = world.database.dialect
    sources = await message_content.sources(world, rows, read)
    found = [NOTHING for _ in rows]
    if not again:
        found = await contacts.heard(world, rows, sources, read or world.database.read)

    def entry(row: Any, words: Words) -> Entry:
        made = {"id": row.id, **indexed(dialect, row.user_id, words)}
        return Entry(row.id, row.blob_id, made)

    made = await _each(world, rows, sources, entry)
    return [
        Entry(entry.id, entry.blob_id, entry.words, heard)
        for entry, heard in zip(made, found, strict=True)
    ]


def unchanged(entries: Sequence[Entry]) -> ColumnElement[bool]:
    """Return the SQL condition for messages that still have the blob that was read."""
    read = [(entry.id, entry.blob_id) for entry in entries]
    return tuple_(col(Message.id), col(Message.blob_id)).in_(read)


def put(connection: Connection, entries: Sequence[Entry]) -> int:
    """Insert the messages that are not indexed yet, and return their number."""
    mark = update(Message).where(unchanged(entries), ~col(Message.indexed))
    marked = connection.execute(mark.values(indexed=True).returning(col(Message.id)))
    now = set(marked.scalars())  # without those that another process indexed
    rest = [entry.words for entry in entries if entry.id in now]
    if rest:
        connection.execute(text_index.insert(connection.dialect.name), rest)
        contacts.note(connection, (entry.heard for entry in entries if entry.id in now))
    return len(rest)


async def words_in(
    world: World, rows: Sequence[Any], read: message_content.Read | None = None
) -> list[Words]:
    """Return the words of messages from their bytes; the rows have MESSAGE_COLUMNS.

    `read_rows` is the same parameter as of `message_content.sources`.
    """
    sources = await message_content.sources(world, rows, read)
    return await _each(world, rows, sources, lambda _, words: words)


async def _each(
    world: World,
    rows: Sequence[Any],
    sources: Sequence[message_content.Stored],
    make: Callable[[Any, Words], Built],
) -> list[Built]:
    """Call `build` in a thread with each row and the words of its message."""
    longest = world.options.search_text

    def work(nth: int, source: Source | None) -> Built:
        body = body_of(source, sources[nth].structure) if source is not None else ""
        return make(rows[nth], read_words(text_of(rows[nth], body, longest)))

    return await message_content.examine_each(sources, work)


async def words_of(world: World, row: Any, stored: message_content.Stored) -> dict[str, Any]:
    """Return the index values of a row, which are also needed to remove it from FTS5."""

    def make(_: Any, words: Words) -> dict[str, Any]:
        return {"id": row.id, **indexed(world.database.dialect, row.user_id, words)}

    (found,) = await _each(world, [row], [stored], make)
    return found


def body_of(source: Source, structure: Part) -> str:
    """Return the text of a message, "" without a text body."""
    return mime.body_text(source, structure) or ""


def text_of(row: Any, body: str, longest: int) -> str:
    """Return subject, addresses, file names and body of a message, cut to `max_length`."""
    people = [*row.to, *row.cc, *row.bcc, [row.from_name, row.from_address]]
    parts = [
        row.subject,
        *(word for pair in people for word in pair if word),
        *(file["filename"] or "" for file in row.attachments),
        body,
    ]
    return "\n".join(parts)[:longest]
