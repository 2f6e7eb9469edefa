"""Tables of stored files and of links to them."""

from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    choice,
    ref,
)


class FileAttachmentMode(StrEnum):
    """How a recipient gets a file."""

    ATTACH = "ATTACH"
    LINK = "LINK"
    SHARE_RO = "SHARE_RO"
    SHARE_RW = "SHARE_RW"


class File(Owned, table=True):
    """A stored file. Pages are in the order of (created_at, id)."""

    __tablename__ = "files"
    __table_args__ = (Index("files_of_user", "user_id", "created_at", "id"),)

    filename: str
    content_type: str
    size: Number
    digest: str  # SHA-256, hex
    blob_id: int = ref("blobs.id", ondelete="RESTRICT")
    created_at: Moment
    updated_at: Moment
    # accurate to about a day; unused files without shares are deleted
    used_at: Moment = Field(sa_type=Instant, index=True)


class FileShare(Owned, table=True):
    """A link to a file. Its URL is computed from the id and the signing secret."""

    __tablename__ = "file_shares"

    file_id: int = ref("files.id")
    mode: FileAttachmentMode = choice(FileAttachmentMode)
    # a copy of the file at the time of the share
    blob_id: int | None = ref("blobs.id", ondelete="RESTRICT", default=None)
    size: MaybeNumber = None  # of the copy
    digest: str | None = None  # of the copy
    password: str | None = None  # PHC: resolvers/auth/passwords/password_hashes.py
    expires_at: MaybeMoment = Field(default=None, sa_type=Instant, index=True)
    idle: bool = False  # each access extends the expiry
    access_count: Number = 0
    last_access_at: MaybeMoment = None
    created_at: Moment
