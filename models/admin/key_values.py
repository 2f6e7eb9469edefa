"""Small values under keys: of accounts, and shared by all."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import ByBytes, Instant, Number, Row, ref


class KeyValue(Row, table=True):
    """A value under its key, in a store. It belongs to a stream: an account's, or PLATFORM.

    Those of PLATFORM are shared: everybody who has signed in reads them.
    """

    __tablename__ = "key_values"
    __table_args__ = (
        Index("uq_key_values_key", "stream_id", "store", "key", unique=True),
        Index("ix_key_values_level", "stream_id", "store", "level", "key"),
        Index("ix_key_values_size", "stream_id", "expires_at", "size"),  # all that room asks for
    )

    stream_id: int = ref("streams.id", index=False)
    store: str
    key: str = Field(sa_type=ByBytes)  # slashes make levels
    level: str = Field(sa_type=ByBytes)  # the key as far as its last slash, "" where it has none
    version: Number  # of the change that wrote it: a modseq, which its stream gives once
    size: Number  # bytes of key and value
    expires_at: datetime | None = Field(default=None, sa_type=Instant, index=True)
    value: str
