"""Tables of exports and of archives that are imported."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    UserOwnedRow,
    UtcDateTime,
    foreign_key,
)


class Export(UserOwnedRow, table=True):
    """An archive of a user's data, which may be unfinished."""

    __tablename__ = "exports"
    __table_args__ = (Index("exports_of_user", "user_id", "created_at", "id"),)

    task_id: Int64
    format: str  # mail/archives/archive_writer.py
    filename: str
    settings: bool = False  # it has more than mail
    size: OptionalInt64 = None  # bytes; None until it is finished
    created_at: Timestamp
    finished_at: OptionalTimestamp = None
    expires_at: datetime = Field(sa_type=UtcDateTime, index=True)


class ExportPart(RowWithId, table=True):
    """The next bytes of an export: first the messages, then the directory."""

    __tablename__ = "export_parts"
    __table_args__ = (
        Index("export_pieces_in_order", "export_id", "part", "position", unique=True),
    )

    export_id: int = foreign_key("exports.id", index=False)
    part: Int64  # 0 data, 1 directory, 2 end
    position: Int64
    size: Int64
    blob_id: int = foreign_key("blobs.id", ondelete="RESTRICT")


class ImportArchive(UserOwnedRow, table=True):
    """An archive that an import reads. It is deleted with the end of the task."""

    __tablename__ = "import_archives"

    task_id: int = Field(sa_type=BIG_INTEGER, index=True)
    filename: str
    size: Int64
    blob_id: int = foreign_key("blobs.id", ondelete="RESTRICT")
    created_at: Timestamp
