"""Rebuild of the text index: of some messages in place, or of all in a new index.

In place only on PostgreSQL: FTS5 removes a message only with the exact words that were inserted,
and those may differ now. During a rebuild every message can be found.
"""

from collections.abc import Sequence

from sqlalchemy import column, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from mail.search.index_worker import Entry, unchanged
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import Big

PAGES = 500  # of an SQLite index, merged per call


async def renew(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Replace messages in the index of PostgreSQL, and return their number."""
    now = await _as_read(connection, entries)
    these = [entry.words for entry in entries if entry.id in now]
    if these:
        await connection.execute(text_index.delete("postgresql"), these)
        await connection.execute(text_index.insert("postgresql"), these)
        mark = update(Message).where(col(Message.id).in_(now), ~col(Message.indexed))
        await connection.execute(mark.values(indexed=True))
    return len(these)


async def begin(connection: AsyncConnection) -> None:
    """Create an empty index next to the current one. Drops the rest of an earlier attempt."""
    for statement in text_index.CREATE_NEXT[connection.dialect.name]:
        await connection.exec_driver_sql(statement)


async def add(connection: AsyncConnection, entries: Sequence[Entry]) -> int:
    """Insert messages into the new index, and return their number."""
    dialect = connection.dialect.name
    now = await _as_read(connection, entries)
    these = [entry.words for entry in entries if entry.id in now]
    if these:
        await connection.execute(text_index.insert(dialect, text_index.NEXT), these)
    return len(these)


async def swap(connection: AsyncConnection) -> None:
    """Replace the current index by the new one.

    Messages that arrived or changed during the rebuild are marked to be indexed.
    """
    dialect = connection.dialect.name
    (key,) = text_index.rows(dialect, text_index.NEXT).c
    # NOT is written as in the partial index: SQLite compares the text.
    waited = update(Message).where(text("NOT messages.indexed"), col(Message.id).in_(select(key)))
    await connection.execute(waited.values(indexed=True))
    lost = text(text_index.LOST[dialect]).columns(column("id", Big)).subquery()
    missed = update(Message).where(col(Message.id).in_(select(lost.c.id)), col(Message.indexed))
    await connection.execute(missed.values(indexed=False))
    for statement in text_index.DROP:  # waits for transactions that index
        await connection.exec_driver_sql(statement)
    if dialect == "postgresql":  # messages that those transactions indexed
        await connection.execute(missed.values(indexed=False))
    for statement in text_index.TAKE_OVER[dialect]:
        await connection.exec_driver_sql(statement)


async def merge(connection: AsyncConnection, *, first: bool) -> bool:
    """Merge some segments of an SQLite index. Returns True if there are more.

    A negative number of pages starts a merge of all segments in FTS5.
    """
    before = (await connection.execute(text_index.CHANGED)).scalar_one()
    await connection.execute(text_index.MERGE, {"pages": -PAGES if first else PAGES})
    after = (await connection.execute(text_index.CHANGED)).scalar_one()
    return bool(after - before > 1)


async def _as_read(connection: AsyncConnection, entries: Sequence[Entry]) -> set[int]:
    """Lock the messages with unchanged content, and return their ids."""
    asked = select(col(Message.id)).where(unchanged(entries)).with_for_update()
    return set((await connection.execute(asked)).scalars())
