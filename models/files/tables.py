"""Tables of stored files and of links to them."""

from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    enum_column,
    foreign_key,
)


class FileAttachmentMode(StrEnum):
    """How a recipient gets a file."""

    ATTACH = "ATTACH"
    LINK = "LINK"
    READ_ONLY_LINK = "READ_ONLY_LINK"
    WRITABLE_LINK = "WRITABLE_LINK"


class File(UserOwnedRow, table=True):
    """A stored file. Pages are in the order of (created_at, id)."""

    __tablename__ = "files"
    __table_args__ = (Index("files_of_user", "user_id", "created_at", "id"),)

    filename: str
    content_type: str
    size: Int64
    digest: str  # SHA-256, hex
    blob_id: int = foreign_key("blobs.id", ondelete="RESTRICT")
    created_at: Timestamp
    updated_at: Timestamp
    # accurate to about a day; unused files without shares are deleted
    used_at: Timestamp = Field(sa_type=UtcDateTime, index=True)


class FileShare(UserOwnedRow, table=True):
    """A link to a file. Its URL is computed from the id and the signing secret."""

    __tablename__ = "file_shares"

    file_id: int = foreign_key("files.id")
    mode: FileAttachmentMode = enum_column(FileAttachmentMode)
    # a copy of the file at the time of the share
    blob_id: int | None = foreign_key("blobs.id", ondelete="RESTRICT", default=None)
    size: OptionalInt64 = None  # of the copy
    digest: str | None = None  # of the copy
    password: str | None = None  # PHC: resolvers/auth/passwords/password_hashes.py
    expires_at: OptionalTimestamp = Field(default=None, sa_type=UtcDateTime, index=True)
    idle: bool = False  # each access extends the expiry
    access_count: Int64 = 0
    last_access_at: OptionalTimestamp = None
    created_at: Timestamp
