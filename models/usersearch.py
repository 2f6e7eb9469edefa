"""Parts of names: which accounts hold some letters, by an index of trigrams.

FTS5's own on SQLite; on PostgreSQL, where no extension may be asked for, an index over a
function of ours. `users.words` is what is searched. Parts of fewer than three letters have
no trigram: for those, lists look for beginnings.
"""

from sqlalchemy import ColumnElement, func, literal_column, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import String
from sqlmodel import col

from models.columns import Big
from models.users import User

LETTERS = 3  # of a trigram

CREATE = {
    "sqlite": (
        "CREATE VIRTUAL TABLE search_users USING fts5"
        "(words, content='users', content_rowid='id', tokenize='trigram')",
        "INSERT INTO search_users (rowid, words) SELECT id, words FROM users",
        "CREATE TRIGGER search_users_made AFTER INSERT ON users BEGIN"
        " INSERT INTO search_users (rowid, words) VALUES (new.id, new.words); END",
        "CREATE TRIGGER search_users_gone AFTER DELETE ON users BEGIN"
        " INSERT INTO search_users (search_users, rowid, words)"
        " VALUES ('delete', old.id, old.words); END",
        "CREATE TRIGGER search_users_changed AFTER UPDATE OF words ON users"
        " WHEN old.words <> new.words BEGIN"
        " INSERT INTO search_users (search_users, rowid, words)"
        " VALUES ('delete', old.id, old.words);"
        " INSERT INTO search_users (rowid, words) VALUES (new.id, new.words); END",
    ),
    "postgresql": (
        "CREATE FUNCTION trigrams_of(words text) RETURNS text[] LANGUAGE sql IMMUTABLE"
        " PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$ SELECT coalesce(array_agg(DISTINCT"
        " substr(words, place, 3)), ARRAY[]::text[])"
        " FROM generate_series(1, length(words) - 2) AS place $$",
        "CREATE INDEX search_users_words ON users USING gin (trigrams_of(words))",
    ),
}
DROP = {
    "sqlite": (
        "DROP TRIGGER search_users_made",
        "DROP TRIGGER search_users_gone",
        "DROP TRIGGER search_users_changed",
        "DROP TABLE search_users",
    ),
    "postgresql": ("DROP INDEX search_users_words", "DROP FUNCTION trigrams_of(text)"),
}


def words_of(username: str, name: str | None, address: str | None) -> str:
    """What an account is found by; each part in a line of its own, so that none runs over."""
    return "\n".join(part.casefold() for part in (username, name, address) if part)


def holding(dialect: str, part: str) -> ColumnElement[bool]:
    """Whether the account's words hold this part, of three letters or more, in any case."""
    part = part.casefold()
    held: ColumnElement[bool] = col(User.words).contains(part, autoescape=True)
    if dialect == "sqlite":
        quoted = '"' + part.replace('"', '""') + '"'
        found = text("SELECT rowid FROM search_users WHERE search_users MATCH :part")
        return col(User.id).in_(found.bindparams(part=quoted).columns(rowid=Big)) & held
    grams = sorted({part[at : at + LETTERS] for at in range(len(part) - LETTERS + 1)})
    indexed = func.trigrams_of(literal_column("users.words"), type_=ARRAY(String))
    return indexed.contains(grams) & held
