"""The text index of messages: FTS5 on SQLite, a tsvector on PostgreSQL.

Each message is a row with the message's id. A token of its user is a word of the row, so the index
finds only messages of that user. Rows of deleted messages stay, and joins exclude them. Rows of
replaced drafts are deleted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import (
    BindParameter,
    Connection,
    String,
    TableClause,
    TextClause,
    bindparam,
    column,
    select,
    table,
    text,
)

from models.store.columns import BIG_INTEGER

TABLE_NAME = "search_words"
NEXT_TABLE_NAME = "search_words_next"  # an index that is being rebuilt, beside the one in use
USER_WORD_END = "\u2022"  # occurs in no word: neither a letter nor a digit
MAX_PENDING_LENGTH = 300_000  # characters of words in the pending list of PostgreSQL's index
ENGINE_NAMES = {"sqlite": "SQLite FTS5", "postgresql": "PostgreSQL tsvector, GIN"}


def _word_index_name(table_name: str) -> str:
    return f"ix_{table_name}_words"  # on PostgreSQL


def _create_index_sql_by_dialect(table_name: str) -> dict[str, tuple[str, ...]]:
    """Return the statements that create an index, by dialect."""
    return {
        "sqlite": (
            f"CREATE VIRTUAL TABLE {table_name} USING fts5"
            "(owner, words, content='', tokenize='ascii')",  # words are already folded
        ),
        "postgresql": (
            f"CREATE TABLE {table_name} (rowid bigint PRIMARY KEY, words tsvector NOT NULL)",
            f"CREATE INDEX {_word_index_name(table_name)} ON {table_name} USING gin (words)",
        ),
    }


CREATE_TABLE = _create_index_sql_by_dialect(TABLE_NAME)
DROP_TABLE = (f"DROP TABLE {TABLE_NAME}",)
CREATE_NEXT_TABLE = {
    dialect: (f"DROP TABLE IF EXISTS {NEXT_TABLE_NAME}", *create_sql)
    for dialect, create_sql in _create_index_sql_by_dialect(NEXT_TABLE_NAME).items()
}
RENAME_NEXT_TABLE = {
    "sqlite": (f"ALTER TABLE {NEXT_TABLE_NAME} RENAME TO {TABLE_NAME}",),
    "postgresql": (
        f"ALTER TABLE {NEXT_TABLE_NAME} RENAME TO {TABLE_NAME}",
        f"ALTER INDEX {NEXT_TABLE_NAME}_pkey RENAME TO {TABLE_NAME}_pkey",
        f"ALTER INDEX {_word_index_name(NEXT_TABLE_NAME)} RENAME TO {_word_index_name(TABLE_NAME)}",
    ),
}
# Messages that a rebuilt index lacks. Only ids are compared, since rows of messages are wide.
MISSING_IN_NEXT = {
    "sqlite": "SELECT id FROM messages EXCEPT SELECT id FROM search_words_next_docsize",
    "postgresql": "SELECT id FROM messages EXCEPT SELECT rowid FROM search_words_next",
}

_INSERT = {
    "sqlite": "INSERT INTO search_words (rowid, owner, words) VALUES (:id, :owner, :words)",
    "postgresql": "INSERT INTO search_words (rowid, words)"
    " VALUES (:id, cast(:words AS text)::tsvector) ON CONFLICT (rowid) DO NOTHING",
}
_MERGE_PENDING_LIST = text("SELECT gin_clean_pending_list(cast(:index_name AS regclass))")
_DELETE = {
    "sqlite": "INSERT INTO search_words (search_words, rowid, owner, words)"
    " VALUES ('delete', :id, :owner, :words)",
    "postgresql": "DELETE FROM search_words WHERE rowid = :id",
}
_MATCH = {
    "sqlite": "SELECT rowid FROM search_words WHERE search_words MATCH :query",
    "postgresql": "SELECT rowid FROM search_words WHERE words @@ cast(:query AS text)::tsquery",
}
_IDS_OF_LIST = {
    "sqlite": "SELECT value FROM json_each(:ids)",
    "postgresql": "SELECT value::bigint FROM jsonb_array_elements_text(cast(:ids AS jsonb))",
}


def user_token(user_id: int) -> str:
    """Return the word of all rows of a user, which no text contains."""
    return f"u{user_id}{USER_WORD_END}"


def indexed_ids_table(dialect: str, table_name: str = TABLE_NAME) -> TableClause:
    """Return the table clause of the index. Its only column is the id of the message.

    FTS5 without content also finds absent rows, so on SQLite it is the table of its row sizes.
    """
    if dialect == "sqlite":
        return table(f"{table_name}_docsize", column("id", BIG_INTEGER))
    return table(table_name, column("rowid", BIG_INTEGER))


def index_exists_statement(dialect: str, table_name: str) -> TextClause:
    """Return SQL that selects a row if there is an index of this name."""
    if dialect == "sqlite":
        statement = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name"
    else:
        statement = "SELECT 1 WHERE to_regclass(:name) IS NOT NULL"
    return text(statement).bindparams(name=table_name)


def insert_messages(
    connection: Connection, rows: Sequence[Mapping[str, Any]], table_name: str = TABLE_NAME
) -> None:
    """Insert messages: `id`, `owner`, and `words` of mail/search/tokenizer.py.

    PostgreSQL first adds the words to the pending list of its index. To merge the words of several
    messages takes a quarter of the CPU time and a tenth of the write-ahead log of single messages.
    Searches read the whole list, so it is kept short, and is empty after this.
    """
    dialect = connection.dialect.name
    statement = text(_INSERT[dialect].replace(TABLE_NAME, table_name))
    if dialect == "sqlite":
        connection.execute(statement, rows)
        return
    for batch in _short_batches(rows):
        connection.execute(statement, batch)
        connection.execute(_MERGE_PENDING_LIST, {"index_name": _word_index_name(table_name)})


def _short_batches(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield the rows in batches whose words have about MAX_PENDING_LENGTH characters."""
    start = length = 0
    for end, row in enumerate(rows, 1):
        length += len(row["words"])
        if length >= MAX_PENDING_LENGTH or end == len(rows):
            yield rows[start:end]
            start, length = end, 0


def delete_statement(dialect: str, table_name: str = TABLE_NAME) -> TextClause:
    """Return the delete of a message. FTS5 needs the same words as the insert."""
    return text(_DELETE[dialect].replace(TABLE_NAME, table_name))


def delete_message_from_indexes(
    connection: Connection, parameters: Mapping[str, Any], *, is_indexed: bool
) -> None:
    """Delete a message from the index, if it is indexed, and from an index being rebuilt."""
    dialect = connection.dialect.name
    if is_indexed:
        connection.execute(delete_statement(dialect), dict(parameters))
    if connection.execute(index_exists_statement(dialect, NEXT_TABLE_NAME)).first():
        (key,) = indexed_ids_table(dialect, NEXT_TABLE_NAME).c
        if connection.execute(select(key).where(key == parameters["id"])).first():
            connection.execute(delete_statement(dialect, NEXT_TABLE_NAME), dict(parameters))


def match_statement(dialect: str, match_query: str, extra_ids: Sequence[int] = ()) -> TextClause:
    """Return SQL for the ids of matching messages, and of `extra_ids`.

    `match_query` is written by mail/search/tokenizer.py.
    """
    statement = _MATCH[dialect]
    parameters: list[BindParameter[Any]] = [bindparam("query", match_query, unique=True)]
    if extra_ids:
        statement += f" UNION ALL {_IDS_OF_LIST[dialect]}"
        parameters.append(bindparam("ids", orjson.dumps(list(extra_ids)).decode(), unique=True))
    return text(statement).bindparams(*parameters)


# For SQLite, with the same parameters. The result is one row, since a thread waits for the
# interpreter's lock again for every row that it fetches.
COUNTED_MATCHES = text("""
SELECT count(*) AS many, json_group_array(rowid) AS ids
FROM (SELECT rowid FROM search_words WHERE search_words MATCH :query LIMIT :most)
""")
MATCHES_IN_RANGE = text("""
SELECT rowid FROM search_words
WHERE search_words MATCH :query
  AND rowid >= (SELECT low FROM stretch) AND rowid <= (SELECT high FROM stretch)
UNION ALL SELECT value FROM json_each(:ids)
""")
_MATCH_PARAMETERS = (bindparam("query", type_=String), bindparam("ids", type_=String))
MATCHES_AND_LISTED = {
    dialect: text(f"{_MATCH[dialect]} UNION ALL {_IDS_OF_LIST[dialect]}").bindparams(
        *_MATCH_PARAMETERS
    )
    for dialect in _MATCH
}
# if no messages wait to be indexed
POSTGRES_MATCHES = text(_MATCH["postgresql"]).bindparams(_MATCH_PARAMETERS[0])
SQLITE_LISTED_IDS = text("SELECT value AS rowid FROM json_each(:ids)").bindparams(
    _MATCH_PARAMETERS[1]
)

_SIZE = {
    "sqlite": "SELECT coalesce(sum(length(block)), 0) AS size FROM search_words_data",
    "postgresql": "SELECT pg_total_relation_size('search_words') AS size",
}
_SCORED_MATCHES = {
    "sqlite": """
SELECT rowid, -bm25(search_words) AS score FROM search_words
WHERE search_words MATCH :query AND rowid {comparison} :border
ORDER BY rowid {direction} LIMIT :many""",
    "postgresql": """
SELECT rowid, ts_rank(words, cast(:query AS text)::tsquery) AS score FROM search_words
WHERE words @@ cast(:query AS text)::tsquery AND rowid {comparison} :border
ORDER BY rowid {direction} LIMIT :many""",
}
# The number of changes shows whether there is more to merge.
MERGE_STATEMENT = text("INSERT INTO search_words (search_words, rank) VALUES ('merge', :pages)")
COUNT_CHANGES = text("SELECT total_changes()")
# Rows of deleted messages, on PostgreSQL. FTS5 would need their words.
DELETE_ORPHANED_ROWS = text("""
DELETE FROM search_words WHERE rowid > :after AND rowid <= :last
  AND NOT EXISTS (SELECT 1 FROM messages WHERE id = search_words.rowid)
""")


def size_statement(dialect: str) -> TextClause:
    """Return SQL for the size of the index in bytes."""
    return text(_SIZE[dialect])


def scored_match_statement(
    dialect: str, match_query: str, border_id: int, limit: int, *, is_ascending: bool = False
) -> TextClause:
    """Return SQL for the ids and scores of matching messages below an id, the highest id first.

    With `is_ascending` they are the messages above the id, the lowest id first.
    """
    sql = _SCORED_MATCHES[dialect].format(
        comparison=">" if is_ascending else "<", direction="ASC" if is_ascending else "DESC"
    )
    return text(sql).bindparams(query=match_query, border=border_id, many=limit)
