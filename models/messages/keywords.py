"""Keywords of messages as rows, for lists of the messages with a keyword.

Triggers keep the rows, so no code can forget it. The index of a JSON list is different on each
database, and has not the order of lists.
"""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.store.columns import BIG_INTEGER, UtcDateTime


class MessageKeyword(SQLModel, table=True):
    """A keyword of a message that is not deleted. The sort key is that of messages."""

    __tablename__ = "message_keywords"
    __table_args__ = (
        Index("message_keywords_of_mailbox", "mailbox_id", "keyword", "listed_at", "id"),
        {"sqlite_with_rowid": False},
    )

    user_id: int = Field(
        sa_type=BIG_INTEGER, primary_key=True, sa_column_kwargs={"autoincrement": False}
    )
    keyword: str = Field(primary_key=True)  # ASCII letters in lower case
    listed_at: datetime = Field(sa_type=UtcDateTime, primary_key=True)
    # of the message
    id: int = Field(
        sa_type=BIG_INTEGER, primary_key=True, sa_column_kwargs={"autoincrement": False}
    )
    mailbox_id: int = Field(sa_type=BIG_INTEGER)


_KEYWORDS = {  # the keywords of a row, with ASCII letters in lower case
    "sqlite": "SELECT lower(value) AS folded FROM json_each({row}.keywords)",
    "postgresql": 'SELECT lower(value COLLATE "C") AS folded'
    " FROM jsonb_array_elements_text({row}.keywords)",
}


def _insert_sql(dialect: str, row: str) -> str:
    keywords = _KEYWORDS[dialect].format(row=row)
    return (
        "INSERT INTO message_keywords (user_id, keyword, listed_at, id, mailbox_id)"  # noqa: S608
        f" SELECT DISTINCT {row}.user_id, folded, {row}.listed_at, {row}.id, {row}.mailbox_id"
        f" FROM ({keywords}) AS words WHERE {row}.deleted_at IS NULL"
    )


def _delete_sql(dialect: str) -> str:
    keywords = _KEYWORDS[dialect].format(row="old")
    is_row = "user_id = old.user_id AND listed_at = old.listed_at AND id = old.id"
    return f"DELETE FROM message_keywords WHERE {is_row} AND keyword IN ({keywords})"  # noqa: S608


_COLUMNS = ("keywords", "user_id", "mailbox_id", "listed_at", "deleted_at")
_HAS_CHANGED = " OR ".join(f"new.{name} IS DISTINCT FROM old.{name}" for name in _COLUMNS)
_CHANGES_ROWS = f"(new.keywords <> '[]' OR old.keywords <> '[]') AND ({_HAS_CHANGED})"


CREATE_TRIGGERS = {
    "sqlite": (
        "CREATE TRIGGER message_keywords_in AFTER INSERT ON messages WHEN new.keywords <> '[]'"
        f" BEGIN {_insert_sql('sqlite', 'new')}; END",
        "CREATE TRIGGER message_keywords_out AFTER DELETE ON messages WHEN old.keywords <> '[]'"
        f" BEGIN {_delete_sql('sqlite')}; END",
        f"CREATE TRIGGER message_keywords_changed AFTER UPDATE OF {', '.join(_COLUMNS)} ON messages"
        f" WHEN {_CHANGES_ROWS}"
        f" BEGIN {_delete_sql('sqlite')}; {_insert_sql('sqlite', 'new')}; END",
        "INSERT INTO message_keywords (user_id, keyword, listed_at, id, mailbox_id)"
        " SELECT DISTINCT messages.user_id, lower(words.value), messages.listed_at, messages.id,"
        " messages.mailbox_id FROM messages, json_each(messages.keywords) AS words"
        " WHERE messages.deleted_at IS NULL AND messages.keywords <> '[]'",
    ),
    "postgresql": (
        "CREATE FUNCTION message_keywords_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP <> 'INSERT' THEN {_delete_sql('postgresql')}; END IF;"
        f" IF TG_OP <> 'DELETE' THEN {_insert_sql('postgresql', 'new')}; END IF;"
        " RETURN NULL; END $$",
        "CREATE TRIGGER message_keywords_in AFTER INSERT ON messages FOR EACH ROW"
        " WHEN (new.keywords <> '[]') EXECUTE FUNCTION message_keywords_follow()",
        "CREATE TRIGGER message_keywords_out AFTER DELETE ON messages FOR EACH ROW"
        " WHEN (old.keywords <> '[]') EXECUTE FUNCTION message_keywords_follow()",
        f"CREATE TRIGGER message_keywords_changed AFTER UPDATE OF {', '.join(_COLUMNS)} ON messages"
        f" FOR EACH ROW WHEN ({_CHANGES_ROWS}) EXECUTE FUNCTION message_keywords_follow()",
        "INSERT INTO message_keywords (user_id, keyword, listed_at, id, mailbox_id)"
        ' SELECT DISTINCT messages.user_id, lower(word COLLATE "C"), messages.listed_at,'
        " messages.id, messages.mailbox_id FROM messages,"
        " jsonb_array_elements_text(messages.keywords) AS word"
        " WHERE messages.deleted_at IS NULL AND messages.keywords <> '[]'",
    ),
}
