"""Table of small values under keys, of users and shared ones."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import BYTEWISE_TEXT, Int64, RowWithId, UtcDateTime, foreign_key


class KeyValueEntry(RowWithId, table=True):
    """A value of a user's stream, or of PLATFORM: those are readable by all signed-in users."""

    __tablename__ = "key_value_entries"
    __table_args__ = (
        Index("uq_key_value_entries_key", "stream_id", "store", "key", unique=True),
        Index("ix_key_value_entries_level", "stream_id", "store", "level", "key"),
        Index(
            "ix_key_value_entries_size", "stream_id", "expires_at", "size"
        ),  # all that room asks for
    )

    stream_id: int = foreign_key("streams.id", index=False)
    store: str
    key: str = Field(sa_type=BYTEWISE_TEXT)  # slashes make levels
    level: str = Field(sa_type=BYTEWISE_TEXT)  # the key up to its last slash; "" if it has none
    version: Int64  # MODSEQ of the change that wrote it
    size: Int64  # bytes of key and value
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
    value: str
