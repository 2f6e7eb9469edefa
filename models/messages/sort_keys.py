"""Sort keys of messages as rows, for lists of one mailbox by date, sender, subject or size.

The table has no flags, so a change of flags costs nothing here. The code that stores a message
inserts its row, since the texts are folded in Python. Triggers keep the other columns and delete
the row with the message (migrations/versions/v0112_message_sort_keys.py).
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
