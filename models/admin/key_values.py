"""Table of small values under keys, of users and shared ones."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import ByBytes, Instant, Number, Row, ref


class KeyValue(Row, table=True):
    """A value of a user's stream, or of PLATFORM: those are readable by all signed-in users."""

    __tablename__ = "key_values"
    __table_args__ = (
        Index("uq_key_values_key", "stream_id", "store", "key", unique=True),
        Index("ix_key_values_level", "stream_id", "store", "level", "key"),
        Index("ix_key_values_size", "stream_id", "expires_at", "size"),  # all that room asks for
    )

    stream_id: int = ref("streams.id", index=False)
    store: str
    key: str = Field(sa_type=ByBytes)  # slashes make levels
    level: str = Field(sa_type=ByBytes)  # the key up to its last slash; "" if it has none
    version: Number  # MODSEQ of the change that wrote it
    size: Number  # bytes of key and value
    expires_at: datetime | None = Field(default=None, sa_type=Instant, index=True)
    value: str
