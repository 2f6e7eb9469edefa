"""The text index made anew: of some messages in place, or all of it beside the one in use.

In place only on PostgreSQL: FTS5 forgets a message only if it is told the very words that it
was given, and those may have been others. All the while each message is found.
"""

from collections.abc import Sequence

from sqlalchemy import column, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from mail.search.index_worker import Entry, unchanged
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import Big

PAGES = 500  # of an SQLite index that are merged at once


async def renew(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Put these messages into an index of PostgreSQL afresh; returns how many they were."""
    now = await _as_read(connection, entries)
    these = [entry.words for entry in entries if entry.id in now]
    if these:
        await connection.execute(text_index.delete("postgresql"), these)
        await connection.execute(text_index.insert("postgresql"), these)
        mark = update(Message).where(col(Message.id).in_(now), ~col(Message.indexed))
        await connection.execute(mark.values(indexed=True))
    return len(these)


async def begin(connection: AsyncConnection) -> None:
    """Make an empty index beside the one in use; what another try left there goes."""
    for statement in text_index.CREATE_NEXT[connection.dialect.name]:
        await connection.exec_driver_sql(statement)


async def add(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Put these messages into the index that is being made; returns how many they were."""
    dialect = connection.dialect.name
    now = await _as_read(connection, entries)
    these = [entry.words for entry in entries if entry.id in now]
    if these:
        await connection.execute(text_index.insert(dialect, text_index.NEXT), these)
    return len(these)


async def swap(connection: AsyncConnection) -> None:
    """Put the index that was made in use. What came or changed meanwhile waits to be indexed."""
    dialect = connection.dialect.name
    (key,) = text_index.rows(dialect, text_index.NEXT).c
    # NOT as the index of those that wait has it: SQLite compares the words.
    waited = update(Message).where(text("NOT messages.indexed"), col(Message.id).in_(select(key)))
    await connection.execute(waited.values(indexed=True))
    lost = text(text_index.LOST[dialect]).columns(column("id", Big)).subquery()
    missed = update(Message).where(col(Message.id).in_(select(lost.c.id)), col(Message.indexed))
    await connection.execute(missed.values(indexed=False))
    for statement in text_index.DROP:  # behind whoever is about to index
        await connection.exec_driver_sql(statement)
    if dialect == "postgresql":  # what they put there
        await connection.execute(missed.values(indexed=False))
    for statement in text_index.TAKE_OVER[dialect]:
        await connection.exec_driver_sql(statement)


async def merge(connection: AsyncConnection, *, first: bool) -> bool:
    """Merge some of what was written piece by piece, on SQLite; whether there is more.

    Below zero FTS5 makes up its mind to merge all there is.
    """
    before = (await connection.execute(text_index.CHANGED)).scalar_one()
    await connection.execute(text_index.MERGE, {"pages": -PAGES if first else PAGES})
    after = (await connection.execute(text_index.CHANGED)).scalar_one()
    return bool(after - before > 1)


async def _as_read(connection: AsyncConnection, entries: Sequence[Entry]) -> set[int]:
    """Which of these messages are as they were read, and stay so for this unit."""
    asked = select(col(Message.id)).where(unchanged(entries)).with_for_update()
    return set((await connection.execute(asked)).scalars())
