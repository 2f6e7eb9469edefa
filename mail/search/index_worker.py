"""The worker that fills the text index, behind the deliveries."""

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

BATCH = 200  # messages a unit
NOTHING = Heard()
IDLE = 15.0  # seconds until it looks unasked
GATHER = 0.2  # seconds in which what comes is put there together: each unit costs as much

Made = TypeVar("Made")
log = logging.getLogger(__name__)

SHOWN = {
    "id", "user_id", "blob_id", "structure", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "attachments", *contacts.SHOWN,
}  # fmt: skip


async def run(world: World) -> None:
    """Index what arrives, until cancelled."""
    with world.wakeups.listen([UNINDEXED]) as bell:
        while True:
            bell.clear()
            try:
                while many := await index(world):
                    if many < BATCH:
                        await asyncio.sleep(GATHER)
            except Exception:  # a listener's edge: search goes on by what the rows show
                log.exception("the text index could not be filled")
            try:
                async with asyncio.timeout(IDLE):  # unlike wait_for it is called off at a bell, too
                    await bell.wait()
            except TimeoutError:
                continue


async def index(world: World) -> int:
    """Index the next messages; returns how many there were."""
    # NOT as the index of those that wait has it: SQLite compares the words.
    asked = select(*picked(Message, SHOWN)).where(text("NOT messages.indexed"))
    rows = await world.database.read(asked.order_by(col(Message.id)).limit(BATCH))
    if not rows:
        return 0
    found = await entries(world, rows)
    await world.apply(lambda turn: put(turn.connection, found))
    return len(rows)


class Entry(NamedTuple):
    """What the index is to have of a message, as it was read."""

    id: int
    blob_id: int
    words: dict[str, Any]  # of models/search/text_index.py: insert
    heard: Heard = NOTHING  # what is noted of it when it is put there


async def entries(
    world: World,
    rows: Sequence[Any],
    read: message_content.Read | None = None,
    *,
    again: bool = False,
) -> list[Entry]:
    """What the index is to have of these messages, whose rows have the columns SHOWN.

    Where it had them before, and has them `again`, nothing else is noted of them.
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
    return [one._replace(heard=told) for one, told in zip(made, found, strict=True)]


def unchanged(entries: Sequence[Entry]) -> ColumnElement[bool]:
    """SQL: messages that are as they were read; a draft may have been replaced meanwhile."""
    read = [(entry.id, entry.blob_id) for entry in entries]
    return tuple_(col(Message.id), col(Message.blob_id)).in_(read)


def put(connection: Connection, entries: Sequence[Entry]) -> int:
    """Put into the index what is not in it yet; returns how many messages that were."""
    mark = update(Message).where(unchanged(entries), ~col(Message.indexed))
    marked = connection.execute(mark.values(indexed=True).returning(col(Message.id)))
    now = set(marked.scalars())  # another process may have been quicker
    rest = [entry.words for entry in entries if entry.id in now]
    if rest:
        connection.execute(text_index.insert(connection.dialect.name), rest)
        contacts.note(connection, (entry.heard for entry in entries if entry.id in now))
    return len(rest)


async def words_in(
    world: World, rows: Sequence[Any], read: message_content.Read | None = None
) -> list[Words]:
    """The words of these messages, whose rows have the columns SHOWN, read from their bytes.

    `read` is as `contents.sources` has it.
    """
    sources = await message_content.sources(world, rows, read)
    return await _each(world, rows, sources, lambda _, words: words)


async def _each(
    world: World,
    rows: Sequence[Any],
    sources: Sequence[message_content.Stored],
    make: Callable[[Any, Words], Made],
) -> list[Made]:
    """What is made of each message and its words, all of it in a thread."""
    longest = world.options.search_text

    def work(nth: int, source: Source | None) -> Made:
        body = body_of(source, sources[nth].structure) if source is not None else ""
        return make(rows[nth], read_words(text_of(rows[nth], body, longest)))

    return await message_content.examine_each(sources, work)


async def words_of(world: World, row: Any, stored: message_content.Stored) -> dict[str, Any]:
    """What the index takes, and must be told again to forget it, of a row with SHOWN."""

    def make(_: Any, words: Words) -> dict[str, Any]:
        return {"id": row.id, **indexed(world.database.dialect, row.user_id, words)}

    (found,) = await _each(world, [row], [stored], make)
    return found


def body_of(source: Source, structure: Part) -> str:
    """The text of a message."""
    return mime.body_text(source, structure) or ""


def text_of(row: Any, body: str, longest: int) -> str:
    """What is searched of a message: subject, people, file names, text; so many characters."""
    people = [*row.to, *row.cc, *row.bcc, [row.from_name, row.from_address]]
    parts = [
        row.subject,
        *(word for pair in people for word in pair if word),
        *(file["filename"] or "" for file in row.attachments),
        body,
    ]
    return "\n".join(parts)[:longest]
