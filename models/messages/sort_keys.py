"""Sort keys of messages as rows, for lists of one mailbox by date, sender, subject or size.

The table has no flags, so a change of flags costs nothing here. The code that stores a message
inserts its row, since the texts are folded in Python. Triggers keep the other columns and delete
the row with the message.
"""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, Int64, UtcDateTime

MAX_KEY_BYTES = 64  # of a folded text, in UTF-8


class MessageSortKey(SQLModel, table=True):
    """The sort keys of a message. A deleted message has them too, without a mailbox."""

    __tablename__ = "message_sort_keys"
    __table_args__ = (
        Index("message_sort_keys_by_date", "mailbox_id", "sent_at", "id"),
        Index("message_sort_keys_by_sender", "mailbox_id", "sender_key", "id"),
        Index("message_sort_keys_by_subject", "mailbox_id", "subject_key", "id"),
        Index("message_sort_keys_by_size", "mailbox_id", "size", "id"),
    )

    # of the message
    id: int = Field(
        sa_type=BIG_INTEGER, primary_key=True, sa_column_kwargs={"autoincrement": False}
    )
    mailbox_id: int | None = Field(sa_type=BIG_INTEGER, default=None)
    sent_at: datetime = Field(sa_type=UtcDateTime)  # the header field Date, else the arrival
    sender_key: str = Field(sa_type=BYTEWISE_TEXT)  # the name, else the address
    subject_key: str = Field(sa_type=BYTEWISE_TEXT)  # the base subject (RFC 5256)
    size: Int64


_COLUMNS = ("mailbox_id", "date", "received_at", "size")
_HAS_CHANGED = " OR ".join(f"new.{name} IS DISTINCT FROM old.{name}" for name in _COLUMNS)
_UPDATE = (
    "UPDATE message_sort_keys SET mailbox_id = new.mailbox_id,"
    " sent_at = coalesce(new.date, new.received_at), size = new.size WHERE id = new.id"
)
_DELETE = "DELETE FROM message_sort_keys WHERE id = old.id"

CREATE_TRIGGERS = {
    "sqlite": (
        f"CREATE TRIGGER message_sort_keys_out AFTER DELETE ON messages BEGIN {_DELETE}; END",
        f"CREATE TRIGGER message_sort_keys_changed AFTER UPDATE OF {', '.join(_COLUMNS)}"
        f" ON messages WHEN {_HAS_CHANGED} BEGIN {_UPDATE}; END",
    ),
    "postgresql": (
        "CREATE FUNCTION message_sort_keys_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'DELETE' THEN {_DELETE}; ELSE {_UPDATE}; END IF;"
        " RETURN NULL; END $$",
        "CREATE TRIGGER message_sort_keys_out AFTER DELETE ON messages FOR EACH ROW"
        " EXECUTE FUNCTION message_sort_keys_follow()",
        f"CREATE TRIGGER message_sort_keys_changed AFTER UPDATE OF {', '.join(_COLUMNS)}"
        f" ON messages FOR EACH ROW WHEN ({_HAS_CHANGED})"
        " EXECUTE FUNCTION message_sort_keys_follow()",
    ),
}
