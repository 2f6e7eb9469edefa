"""Which bytes are stored, and what refers to them. The bytes: mail/blobs."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.columns import Instant, MaybeMoment, Moment, Number, Owned, Row, ref

COLD = ".cold"  # how the names of objects in the cold store end


class StorageTier(StrEnum):
    """Where bytes lie: where they are read fast, or where they cost less."""

    HOT = "HOT"
    COLD = "COLD"


class Blob(Row, table=True):
    """A piece of a message, once per tenant. Small ones lie here, large ones in the store."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)

    tenant_id: Number
    digest: str  # SHA-256 of the plain bytes, hex
    size: Number  # plain bytes
    stored_size: Number  # compressed bytes
    codec: str
    name: str | None = Field(default=None, unique=True)  # in the store
    data: bytes | None = Field(default=None, sa_type=LargeBinary)
    created_at: Moment
    damaged_at: MaybeMoment = None  # when `check --repair` found no bytes of this digest


class MessageBlob(SQLModel, table=True):
    """A message needs a blob. No counter: these rows are the count."""

    __tablename__ = "message_blobs"

    message_id: int = ref("messages.id", primary_key=True, index=False)
    blob_id: int = ref("blobs.id", primary_key=True, ondelete="RESTRICT")


class SubmissionBlob(SQLModel, table=True):
    """A message on its way needs a blob, also when its stored copy is gone."""

    __tablename__ = "submission_blobs"

    submission_id: int = ref("submissions.id", primary_key=True, index=False)
    blob_id: int = ref("blobs.id", primary_key=True, ondelete="RESTRICT")


class Upload(Owned, table=True):
    """Bytes sent before the mutation that uses them. Kept for a day.

    Until all have come it has neither `digest` nor `blob_name`, and those that have lie in a
    file: mail/arriving.py.
    """

    __tablename__ = "uploads"

    size: Number
    received: Number = 0  # bytes that are safe in the file; says nothing once all have come
    digest: str | None = None  # SHA-256, hex
    content_type: str
    filename: str | None = None
    told: str | None = None  # Upload-Metadata, as it came
    blob_name: str | None = Field(default=None, unique=True)  # in the store, not compressed
    created_at: Moment
    expires_at: datetime = Field(sa_type=Instant, index=True)
