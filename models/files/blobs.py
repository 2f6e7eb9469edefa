"""Tables of blobs and their reference rows, and of uploads. The bytes: mail/storage/blobs."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
)

COLD_SUFFIX = ".cold"  # of the names of objects in the cold object store


class StorageTier(StrEnum):
    """The storage of a blob: fast, or cheap."""

    HOT = "HOT"
    COLD = "COLD"


class Blob(RowWithId, table=True):
    """Bytes that are stored once for each tenant: small ones here, large ones as an object."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)

    tenant_id: Int64
    digest: str  # SHA-256 of the plain bytes, hex
    size: Int64  # plain bytes
    stored_size: Int64  # compressed bytes
    codec: str
    name: str | None = Field(default=None, unique=True)  # of the object
    data: bytes | None = Field(default=None, sa_type=LargeBinary)
    created_at: Timestamp
    damaged_at: OptionalTimestamp = None  # when a read or `check` found other bytes


class MessageBlob(SQLModel, table=True):
    """The reference row of a message's blob. There is no counter: these rows are counted."""

    __tablename__ = "message_blobs"

    message_id: int = foreign_key("messages.id", primary_key=True, index=False)
    blob_id: int = foreign_key("blobs.id", primary_key=True, ondelete="RESTRICT")


class SubmissionBlob(SQLModel, table=True):
    """The reference row of a submission's blob, also if the message was deleted."""

    __tablename__ = "submission_blobs"

    submission_id: int = foreign_key("submissions.id", primary_key=True, index=False)
    blob_id: int = foreign_key("blobs.id", primary_key=True, ondelete="RESTRICT")


class Upload(UserOwnedRow, table=True):
    """Bytes sent before the mutation that uses them. Kept for a day.

    An unfinished upload has neither `digest` nor `blob_name`. On SQLite its bytes are in a file of
    the machine (mail/files/resumable_file.py), on PostgreSQL in the objects of its parts
    (`UploadPart`).
    """

    __tablename__ = "uploads"

    size: Int64
    received: Int64 = 0  # bytes that are stored; not used when the upload is finished
    digest: str | None = None  # SHA-256, hex
    content_type: str
    filename: str | None = None
    client_metadata: str | None = None  # Upload-Metadata header, unchanged
    blob_name: str | None = Field(default=None, unique=True)  # of the object, not compressed
    created_at: Timestamp
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class UploadPart(RowWithId, table=True):
    """Bytes of an unfinished upload that are stored as an object, on PostgreSQL.

    The parts of an upload follow one another without gaps, and end at `Upload.received`.
    """

    __tablename__ = "upload_parts"
    __table_args__ = (UniqueConstraint("upload_id", "start"),)

    upload_id: int = foreign_key("uploads.id", index=False)  # the constraint has an index
    start: Int64  # offset of the first byte in the upload
    size: Int64
    digest: str  # SHA-256, hex
    name: str = Field(unique=True)  # of the object, not compressed
