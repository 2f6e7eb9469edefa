"""The text index: FTS5 on SQLite, a tsvector of our own words on PostgreSQL.

Each message is a row, whose number is its id. Its owner's token is a word of the row, so
that the index itself finds only the owner's; deleted messages are left in and joined away.
What a replaced draft was is taken out.
"""

from sqlalchemy import TextClause, text

TABLE = "search_words"

CREATE = {
    "sqlite": (
        f"CREATE VIRTUAL TABLE {TABLE} USING fts5"
        "(owner, words, content='', tokenize='unicode61 remove_diacritics 2')",
    ),
    "postgresql": (
        f"CREATE TABLE {TABLE} (rowid bigint PRIMARY KEY, words tsvector NOT NULL)",
        f"CREATE INDEX ix_{TABLE}_words ON {TABLE} USING gin (words) WITH (fastupdate = off)",
    ),
}
DROP = (f"DROP TABLE {TABLE}",)


def owner(user_id: int) -> str:
    """The word that all rows of a user have, and no text can."""
    return f"u{user_id}u"


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


def found(dialect: str) -> TextClause:
    """To find message ids: `query` as `mail/searchindex.py` writes it."""
    if dialect == "sqlite":
        return text("SELECT rowid FROM search_words WHERE search_words MATCH :query")
    return text("SELECT rowid FROM search_words WHERE words @@ cast(:query AS text)::tsquery")
