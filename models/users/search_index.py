"""Indexes for lists of users that plain columns can't have.

Parts of names are found by an index of trigrams: FTS5's own on SQLite; on PostgreSQL an index over
a function, since extensions can't be required. `users.words` is the searched text. Parts of
less than three letters have no trigram: lists search for prefixes instead. The prefix indexes on
PostgreSQL compare bytes, as SQLite does, so that equal prefixes are adjacent.
"""

from datetime import datetime
from typing import Any

import idna
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Label,
    bindparam,
    collate,
    false,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text
from sqlmodel import col

from models.store.columns import BIG_INTEGER, UtcDateTime
from models.store.text_folding import fold_text
from models.users.tables import User

TRIGRAM_LENGTH = 3
LAST_CHARACTER = "\U0010ffff"  # sorts after all texts with the same prefix
_LAST_LOGIN_SQL = {  # the epoch for users who never signed in: null has no order
    "sqlite": "coalesce(users.last_login_at, '1970-01-01 00:00:00.000000')",
    "postgresql": "coalesce(users.last_login_at, '1970-01-01 00:00:00+00'::timestamptz)",
}


def _create_last_login_index_sql(dialect: str) -> str:
    expression = _LAST_LOGIN_SQL[dialect].replace("users.", "")
    return f"CREATE INDEX search_users_logins ON users ({expression}, id)"


CREATE_INDEXES = {
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
        _create_last_login_index_sql("sqlite"),
    ),
    "postgresql": (
        "CREATE FUNCTION trigrams_of(words text) RETURNS text[] LANGUAGE sql IMMUTABLE"
        " PARALLEL SAFE RETURNS NULL ON NULL INPUT AS $$ SELECT coalesce(array_agg(DISTINCT"
        " substr(words, place, 3)), ARRAY[]::text[])"
        " FROM generate_series(1, length(words) - 2) AS place $$",
        "CREATE INDEX search_users_words ON users USING gin (trigrams_of(words))"
        " WITH (fastupdate = off)",
        'CREATE INDEX search_users_names ON users (username_key COLLATE "C")',
        'CREATE INDEX search_users_mains ON addresses (local COLLATE "C") WHERE main',
        _create_last_login_index_sql("postgresql"),
    ),
}


def search_text(username: str, name: str | None, address: str | None) -> str:
    """Return the text that a user is found by, with each part in its own line.

    The parts are folded by `fold_text`. Username and address are included in the form that is
    shown, and in normal form: without dots, the domain in Unicode.
    """
    parts = [fold_text(part) for part in (username, name, address) if part]
    plain = [fold_text(_normal_form(part.casefold())) for part in (username, address) if part]
    return "\n".join(dict.fromkeys(parts + plain))


def _normal_form(address: str) -> str:
    local, at, domain = address.partition("@")
    return local.replace(".", "") + at + ".".join(map(_decode_domain_label, domain.split(".")))


def _decode_domain_label(label: str) -> str:
    try:
        return idna.decode(label) if label.startswith("xn--") else label
    except idna.IDNAError:
        return label


def user_search_text_contains(dialect: str, part: str) -> ColumnElement[bool]:
    """Return SQL that is true if the search text contains a part of at least three letters.

    Case and accents are ignored. A part of invisible characters alone is in no text.
    """
    part = fold_text(part)
    has_part: ColumnElement[bool] = col(User.words).contains(part, autoescape=True)
    if len(part) < TRIGRAM_LENGTH:
        return has_part if part else false()
    if dialect == "sqlite":
        quoted = '"' + part.replace('"', '""') + '"'
        matching_ids = text("SELECT rowid FROM search_users WHERE search_users MATCH :part")
        # unique: there may be others in the statement
        parameter: BindParameter[str] = bindparam("part", quoted, unique=True)
        return (
            col(User.id).in_(matching_ids.bindparams(parameter).columns(rowid=BIG_INTEGER))
            & has_part
        )
    grams = sorted({part[at : at + TRIGRAM_LENGTH] for at in range(len(part) - TRIGRAM_LENGTH + 1)})
    indexed = func.trigrams_of(literal_column("users.words"), type_=ARRAY(Text))
    return indexed.contains(grams) & has_part


def has_prefix(dialect: str, column: Any, prefix: Any) -> ColumnElement[bool]:
    """Return SQL that is true if a column begins with a prefix, a text or SQL, in the same case."""
    text = collate(column, "C") if dialect == "postgresql" else column
    condition: ColumnElement[bool] = (text >= prefix) & (text < prefix + LAST_CHARACTER)
    return condition


def unindexed_last_login_column(dialect: str) -> ColumnElement[datetime]:
    """Return the SQL of `last_login_column` in a form for which SQLite uses no index."""
    # PostgreSQL estimates for each statement whether the index is faster
    prefix = "+" if dialect == "sqlite" else ""
    return literal_column(f"{prefix}{_LAST_LOGIN_SQL[dialect]}", type_=UtcDateTime())


def last_login_column(dialect: str) -> Label[datetime]:
    """Return SQL for the time of the last sign-in; EPOCH if the user never signed in."""
    return literal_column(_LAST_LOGIN_SQL[dialect], type_=UtcDateTime()).label("last_seen")
