"""The pending list of PostgreSQL's text index, which searches read besides the index."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from models.search import text_index
from models.store.database import Database
from tests.support.stores import store_fixtures
from tests.support.stores.recorded_statements import record_sql

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)
INDEX_NAME = "ix_search_words_words"
MERGE = "SELECT gin_clean_pending_list"


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Database]:
    async with store_fixtures.open_empty_postgres(postgres) as database:
        yield database


def make_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of messages with a thousand words each."""
    return [
        {"id": number, "owner": "", "words": " ".join(f"'w{number}x{n}'" for n in range(1000))}
        for number in range(1, count + 1)
    ]


async def insert_and_count_merges(database: Database, rows: list[dict[str, Any]]) -> int:
    statements = record_sql(database)
    async with database.engine.begin() as connection:
        await connection.run_sync(text_index.insert_messages, rows)
    return sum(statement.startswith(MERGE) for statement in statements)


async def merge_and_count_pages(database: Database) -> int:
    """Merge the pending list, and return how many pages it had."""
    async with database.engine.begin() as connection:
        return int((await connection.execute(text(f"{MERGE}('{INDEX_NAME}')"))).scalar_one())


async def test_pending_list_is_short_and_empty_at_the_end(database: Database) -> None:
    rows = make_rows(120)
    length = sum(len(row["words"]) for row in rows)
    assert length > 3 * text_index.MAX_PENDING_LENGTH
    merge_count = await insert_and_count_merges(database, rows)
    assert merge_count >= length / text_index.MAX_PENDING_LENGTH - 1
    assert await merge_and_count_pages(database) == 0
    statement = text_index.match_statement("postgresql", "w1x7 | w60x0 | w120x999")
    async with database.engine.connect() as connection:
        found = (await connection.execute(statement)).scalars().all()
    assert sorted(found) == [1, 60, 120]


async def test_short_messages_are_merged_together(database: Database) -> None:
    assert await insert_and_count_merges(database, make_rows(20)) == 1
    assert await merge_and_count_pages(database) == 0


async def test_words_are_pending_until_they_are_merged(database: Database) -> None:
    """An index without a pending list would make the other tests pass."""
    statement = text("INSERT INTO search_words (rowid, words) VALUES (1, 'heron lagoon')")
    async with database.engine.begin() as connection:
        await connection.execute(statement)
    assert await merge_and_count_pages(database) == 1
