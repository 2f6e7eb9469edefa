"""Rebuild of the text index: of some messages in place, or of all in a new index.

In place only on PostgreSQL: FTS5 removes a message only with the exact words that were inserted,
and those may differ now. During a rebuild every message can be found.
"""

from collections.abc import Sequence

from sqlalchemy import column, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from mail.search.index_worker import IndexEntry, unchanged_messages_condition
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import BIG_INTEGER

MERGE_PAGES = 500  # of an SQLite index, merged per call


async def reindex_unchanged_messages(
    connection: AsyncConnection, entries: Sequence[IndexEntry]
) -> int:
    """Replace messages in the index of PostgreSQL, and return their number."""
    unchanged_ids = await _lock_unchanged(connection, entries)
    rows = [entry.words for entry in entries if entry.id in unchanged_ids]
    if rows:
        await connection.execute(text_index.delete_statement("postgresql"), rows)
        await connection.run_sync(text_index.insert_messages, rows)
        mark_statement = update(Message).where(
            col(Message.id).in_(unchanged_ids), ~col(Message.indexed)
        )
        await connection.execute(mark_statement.values(indexed=True))
    return len(rows)


async def create_new_index(connection: AsyncConnection) -> None:
    """Create an empty index next to the current one. Drops the rest of an earlier attempt."""
    for statement in text_index.CREATE_NEXT_TABLE[connection.dialect.name]:
        await connection.exec_driver_sql(statement)


async def add_to_new_index(connection: AsyncConnection, entries: Sequence[IndexEntry]) -> int:
    """Insert messages into the new index, and return their number."""
    unchanged_ids = await _lock_unchanged(connection, entries)
    rows = [entry.words for entry in entries if entry.id in unchanged_ids]
    if rows:
        await connection.run_sync(text_index.insert_messages, rows, text_index.NEXT_TABLE_NAME)
    return len(rows)


async def activate_new_index_and_mark_missing_messages(connection: AsyncConnection) -> None:
    """Replace the current index by the new one.

    Messages that arrived or changed during the rebuild are marked to be indexed.
    """
    dialect = connection.dialect.name
    (key,) = text_index.indexed_ids_table(dialect, text_index.NEXT_TABLE_NAME).c
    # NOT is written as in the partial index: SQLite compares the text.
    indexed_meanwhile = update(Message).where(
        text("NOT messages.indexed"), col(Message.id).in_(select(key))
    )
    await connection.execute(indexed_meanwhile.values(indexed=True))
    missing = (
        text(text_index.MISSING_IN_NEXT[dialect]).columns(column("id", BIG_INTEGER)).subquery()
    )
    mark_missing = update(Message).where(
        col(Message.id).in_(select(missing.c.id)), col(Message.indexed)
    )
    await connection.execute(mark_missing.values(indexed=False))
    for statement in text_index.DROP_TABLE:  # waits for transactions that index
        await connection.exec_driver_sql(statement)
    if dialect == "postgresql":  # messages that those transactions indexed
        await connection.execute(mark_missing.values(indexed=False))
    for statement in text_index.RENAME_NEXT_TABLE[dialect]:
        await connection.exec_driver_sql(statement)


async def merge_segments_and_return_has_more(
    connection: AsyncConnection, *, is_first: bool
) -> bool:
    """Merge some segments of an SQLite index. Returns True if there are more.

    A negative number of pages starts a merge of all segments in FTS5.
    """
    before = (await connection.execute(text_index.COUNT_CHANGES)).scalar_one()
    await connection.execute(
        text_index.MERGE_STATEMENT, {"pages": -MERGE_PAGES if is_first else MERGE_PAGES}
    )
    after = (await connection.execute(text_index.COUNT_CHANGES)).scalar_one()
    return bool(after - before > 1)


async def _lock_unchanged(connection: AsyncConnection, entries: Sequence[IndexEntry]) -> set[int]:
    """Lock the messages with unchanged content, and return their ids."""
    statement = (
        select(col(Message.id)).where(unchanged_messages_condition(entries)).with_for_update()
    )
    return set((await connection.execute(statement)).scalars())
