"""The text index of messages: FTS5 on SQLite, a tsvector on PostgreSQL.

Each message is a row with the message's id. A token of its user is a word of the row, so the index
finds only messages of that user. Rows of deleted messages stay, and joins exclude them. Rows of
replaced drafts are deleted.
"""

from collections.abc import Mapping, Sequence
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

from models.store.columns import Big

TABLE = "search_words"
NEXT = "search_words_next"  # an index that is being rebuilt, beside the one in use
APART = "\u2022"  # occurs in no word: neither a letter nor a digit
ENGINES = {"sqlite": "SQLite FTS5", "postgresql": "PostgreSQL tsvector, GIN"}


def _create(name: str) -> dict[str, tuple[str, ...]]:
    """Return the statements that create an index, by dialect."""
    return {
        "sqlite": (
            f"CREATE VIRTUAL TABLE {name} USING fts5"
            "(owner, words, content='', tokenize='ascii')",  # words are already folded
        ),
        "postgresql": (
            f"CREATE TABLE {name} (rowid bigint PRIMARY KEY, words tsvector NOT NULL)",
            f"CREATE INDEX ix_{name}_words ON {name} USING gin (words) WITH (fastupdate = off)",
        ),
    }


CREATE = _create(TABLE)
DROP = (f"DROP TABLE {TABLE}",)
CREATE_NEXT = {
    dialect: (f"DROP TABLE IF EXISTS {NEXT}", *made) for dialect, made in _create(NEXT).items()
}
TAKE_OVER = {
    "sqlite": (f"ALTER TABLE {NEXT} RENAME TO {TABLE}",),
    "postgresql": (
        f"ALTER TABLE {NEXT} RENAME TO {TABLE}",
        f"ALTER INDEX {NEXT}_pkey RENAME TO {TABLE}_pkey",
        f"ALTER INDEX ix_{NEXT}_words RENAME TO ix_{TABLE}_words",
    ),
}
# Messages that a rebuilt index lacks. Only ids are compared, since rows of messages are wide.
LOST = {
    "sqlite": "SELECT id FROM messages EXCEPT SELECT id FROM search_words_next_docsize",
    "postgresql": "SELECT id FROM messages EXCEPT SELECT rowid FROM search_words_next",
}

_INSERT = {
    "sqlite": "INSERT INTO search_words (rowid, owner, words) VALUES (:id, :owner, :words)",
    "postgresql": "INSERT INTO search_words (rowid, words)"
    " VALUES (:id, cast(:words AS text)::tsvector) ON CONFLICT (rowid) DO NOTHING",
}
_DELETE = {
    "sqlite": "INSERT INTO search_words (search_words, rowid, owner, words)"
    " VALUES ('delete', :id, :owner, :words)",
    "postgresql": "DELETE FROM search_words WHERE rowid = :id",
}
_FOUND = {
    "sqlite": "SELECT rowid FROM search_words WHERE search_words MATCH :query",
    "postgresql": "SELECT rowid FROM search_words WHERE words @@ cast(:query AS text)::tsquery",
}
_LISTED = {
    "sqlite": "SELECT value FROM json_each(:ids)",
    "postgresql": "SELECT value::bigint FROM jsonb_array_elements_text(cast(:ids AS jsonb))",
}


def owner(user_id: int) -> str:
    """Return the word of all rows of a user, which no text contains."""
    return f"u{user_id}{APART}"


def rows(dialect: str, name: str = TABLE) -> TableClause:
    """Return the table clause of the index. Its only column is the id of the message.

    FTS5 without content also finds absent rows, so on SQLite it is the table of its row sizes.
    """
    if dialect == "sqlite":
        return table(f"{name}_docsize", column("id", Big))
    return table(name, column("rowid", Big))


def there(dialect: str, name: str) -> TextClause:
    """Return SQL that selects a row if there is an index of this name."""
    if dialect == "sqlite":
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name"
    else:
        asked = "SELECT 1 WHERE to_regclass(:name) IS NOT NULL"
    return text(asked).bindparams(name=name)


def insert(dialect: str, name: str = TABLE) -> TextClause:
    """Return the insert of a message: `id`, `owner`, and `words` of mail/search/tokenizer.py."""
    return text(_INSERT[dialect].replace(TABLE, name))


def delete(dialect: str, name: str = TABLE) -> TextClause:
    """Return the delete of a message. FTS5 needs the same words as the insert."""
    return text(_DELETE[dialect].replace(TABLE, name))


def forget(connection: Connection, words: Mapping[str, Any], *, known: bool) -> None:
    """Delete a message from the index, if it is indexed, and from an index being rebuilt."""
    dialect = connection.dialect.name
    if known:
        connection.execute(delete(dialect), dict(words))
    if connection.execute(there(dialect, NEXT)).first():
        (key,) = rows(dialect, NEXT).c
        if connection.execute(select(key).where(key == words["id"])).first():
            connection.execute(delete(dialect, NEXT), dict(words))


def found(dialect: str, query: str, ids: Sequence[int] = ()) -> TextClause:
    """Return SQL for the ids of matching messages, and of `extra_ids`.

    `match_query` is written by mail/search/tokenizer.py.
    """
    asked = _FOUND[dialect]
    given: list[BindParameter[Any]] = [bindparam("query", query, unique=True)]
    if ids:
        asked += f" UNION ALL {_LISTED[dialect]}"
        given.append(bindparam("ids", orjson.dumps(list(ids)).decode(), unique=True))
    return text(asked).bindparams(*given)


# For SQLite, with the same parameters. The result is one row, since a thread waits for the
# interpreter's lock again for every row that it fetches.
SOME = text("""
SELECT count(*) AS many, json_group_array(rowid) AS ids
FROM (SELECT rowid FROM search_words WHERE search_words MATCH :query LIMIT :most)
""")
WITHIN = text("""
SELECT rowid FROM search_words
WHERE search_words MATCH :query
  AND rowid >= (SELECT low FROM stretch) AND rowid <= (SELECT high FROM stretch)
UNION ALL SELECT value FROM json_each(:ids)
""")
_GIVEN = (bindparam("query", type_=String), bindparam("ids", type_=String))
ALL = {
    dialect: text(f"{_FOUND[dialect]} UNION ALL {_LISTED[dialect]}").bindparams(*_GIVEN)
    for dialect in _FOUND
}
ALONE = text(_FOUND["postgresql"]).bindparams(_GIVEN[0])  # if no messages wait to be indexed
LISTED = text("SELECT value AS rowid FROM json_each(:ids)").bindparams(_GIVEN[1])

_SIZE = {
    "sqlite": "SELECT coalesce(sum(length(block)), 0) AS size FROM search_words_data",
    "postgresql": "SELECT pg_total_relation_size('search_words') AS size",
}
_HITS = {
    "sqlite": """
SELECT rowid, -bm25(search_words) AS score FROM search_words
WHERE search_words MATCH :query AND rowid < :before ORDER BY rowid DESC LIMIT :many""",
    "postgresql": """
SELECT rowid, ts_rank(words, cast(:query AS text)::tsquery) AS score FROM search_words
WHERE words @@ cast(:query AS text)::tsquery AND rowid < :before ORDER BY rowid DESC LIMIT :many""",
}
# The number of changes shows whether there is more to merge.
MERGE = text("INSERT INTO search_words (search_words, rank) VALUES ('merge', :pages)")
CHANGED = text("SELECT total_changes()")
# Rows of deleted messages, on PostgreSQL. FTS5 would need their words.
DEAD = text("""
DELETE FROM search_words WHERE rowid > :after AND rowid <= :last
  AND NOT EXISTS (SELECT 1 FROM messages WHERE id = search_words.rowid)
""")


def size(dialect: str) -> TextClause:
    """Return SQL for the size of the index in bytes."""
    return text(_SIZE[dialect])


def hits(dialect: str, query: str, before: int, many: int) -> TextClause:
    """Return SQL for the ids and scores of matching messages below an id, the highest id first."""
    return text(_HITS[dialect]).bindparams(query=query, before=before, many=many)
