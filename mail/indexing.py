"""The worker that fills the text index, behind the deliveries."""

import asyncio
import logging
from typing import Any

from sqlalchemy import select, text, tuple_, update
from sqlmodel import col

from mail import contents, messages
from mail.blobs.errors import Corrupt
from mail.searchindex import indexed
from models import searchindex
from models.columns import picked
from models.messages import Message
from models.world import World

BATCH = 200  # messages a unit
IDLE = 15.0  # seconds until it looks unasked
LONGEST = 256 * 1024  # characters of a message

log = logging.getLogger(__name__)

SHOWN = {
    "id", "user_id", "blob_id", "structure", "subject", "from_name", "from_address",
    "to", "cc", "bcc", "attachments",
}  # fmt: skip


async def run(world: World) -> None:
    """Index what arrives, until cancelled."""
    with world.wakeups.listen_always() as bell:
        while True:
            bell.clear()
            try:
                while await index(world):
                    pass
            except Exception:  # a listener's edge: search goes on by what the rows show
                log.exception("the text index could not be filled")
            try:
                await asyncio.wait_for(bell.wait(), IDLE)
            except TimeoutError:
                continue


async def index(world: World) -> int:
    """Index the next messages; returns how many there were."""
    # NOT as the index of those that wait has it: SQLite compares the words.
    asked = select(*picked(Message, SHOWN)).where(text("NOT messages.indexed"))
    rows = await world.database.read(asked.order_by(col(Message.id)).limit(BATCH))
    if not rows:
        return 0
    dialect = world.database.dialect
    sources = await contents.sources(world, rows)
    given = await asyncio.to_thread(_words, dialect, rows, sources)
    async with world.write() as session:
        connection = await session.connection()
        # As they were read: a draft may have been replaced meanwhile.
        read = [(row.id, row.blob_id) for row in rows]
        these = tuple_(col(Message.id), col(Message.blob_id)).in_(read)
        mark = update(Message).where(these, ~col(Message.indexed))
        marked = await connection.execute(mark.values(indexed=True).returning(col(Message.id)))
        now = set(marked.scalars())  # another process may have been quicker
        rest = [one for one in given if one["id"] in now]
        if rest:
            await connection.execute(searchindex.insert(dialect), rest)
    return len(rows)


def _words(dialect: str, rows: Any, sources: Any) -> list[dict[str, Any]]:
    return [words_of(dialect, row, one) for row, one in zip(rows, sources, strict=True)]


def words_of(dialect: str, row: Any, stored: contents.Stored) -> dict[str, Any]:
    """What the index takes, and must be told again to forget it, of a row with SHOWN."""
    return {"id": row.id, **indexed(dialect, row.user_id, text_of(row, stored))}


def text_of(row: Any, stored: contents.Stored) -> str:
    """What is searched of a message: subject, people, file names, text."""
    try:
        body = messages.body_text(stored.source, stored.structure) or ""
    except Corrupt:  # logged where it was read; the rest of the mail is not to wait for it
        body = ""
    people = [*row.to, *row.cc, *row.bcc, [row.from_name, row.from_address]]
    parts = [
        row.subject,
        *(word for pair in people for word in pair if word),
        *(file["filename"] or "" for file in row.attachments),
        body,
    ]
    return "\n".join(parts)[:LONGEST]
