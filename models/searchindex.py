"""The text index: FTS5 on SQLite, a tsvector of our own words on PostgreSQL.

Each message is a row, whose number is its id. Its owner's token is a word of the row, so
that the index itself finds only the owner's; deleted messages are left in and joined away.
What a replaced draft was is taken out.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import BindParameter, TextClause, bindparam, text

TABLE = "search_words"
APART = "\u2022"  # is in no word: neither a letter nor a digit

CREATE = {
    "sqlite": (
        f"CREATE VIRTUAL TABLE {TABLE} USING fts5"
        "(owner, words, content='', tokenize='ascii')",  # the words are divided and folded
    ),
    "postgresql": (
        f"CREATE TABLE {TABLE} (rowid bigint PRIMARY KEY, words tsvector NOT NULL)",
        f"CREATE INDEX ix_{TABLE}_words ON {TABLE} USING gin (words) WITH (fastupdate = off)",
    ),
}
DROP = (f"DROP TABLE {TABLE}",)

_FOUND = {
    "sqlite": "SELECT rowid FROM search_words WHERE search_words MATCH :query",
    "postgresql": "SELECT rowid FROM search_words WHERE words @@ cast(:query AS text)::tsquery",
}
_LISTED = {
    "sqlite": "SELECT value FROM json_each(:ids)",
    "postgresql": "SELECT value::bigint FROM jsonb_array_elements_text(cast(:ids AS jsonb))",
}


def owner(user_id: int) -> str:
    """The word that all rows of a user have, and no text can."""
    return f"u{user_id}{APART}"


def insert(dialect: str) -> TextClause:
    """To index a message: `id`, `owner`, and `words` as `mail/searchindex.py` writes them."""
    if dialect == "sqlite":
        return text("INSERT INTO search_words (rowid, owner, words) VALUES (:id, :owner, :words)")
    return text(
        "INSERT INTO search_words (rowid, words) VALUES (:id, cast(:words AS text)::tsvector)"
        " ON CONFLICT (rowid) DO NOTHING"
    )


def delete(dialect: str) -> TextClause:
    """To forget a message: FTS5 must be told the very words that it was given."""
    if dialect == "sqlite":
        return text(
            "INSERT INTO search_words (search_words, rowid, owner, words)"
            " VALUES ('delete', :id, :owner, :words)"
        )
    return text("DELETE FROM search_words WHERE rowid = :id")


def found(dialect: str, query: str, ids: Sequence[int] = ()) -> TextClause:
    """To find message ids: `query` as `mail/searchindex.py` writes it; and these ids besides."""
    asked = _FOUND[dialect]
    given: list[BindParameter[Any]] = [bindparam("query", query, unique=True)]
    if ids:
        asked += f" UNION ALL {_LISTED[dialect]}"
        given.append(bindparam("ids", orjson.dumps(list(ids)).decode(), unique=True))
    return text(asked).bindparams(*given)


# Of an SQLite index; with the same parameters.
MANY = text(
    "SELECT count(*) AS many FROM"
    " (SELECT 1 FROM search_words WHERE search_words MATCH :query LIMIT :most)"
)
# The sign keeps SQLite from asking the index for each message that is near.
NEAR = text("""
SELECT rowid FROM search_words
WHERE search_words MATCH :query
  AND rowid >= (SELECT min(id) FROM near) AND rowid <= (SELECT max(id) FROM near)
  AND +rowid IN (SELECT id FROM near)
UNION ALL SELECT value FROM json_each(:ids)
""")
ALL = text(f"{_FOUND['sqlite']} UNION ALL {_LISTED['sqlite']}")
