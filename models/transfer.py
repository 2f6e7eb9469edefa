"""Tables of exports and of archives that are imported."""

from datetime import datetime

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    Big,
    Instant,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Owned,
    Row,
    ref,
)


class Export(Owned, table=True):
    """An archive of a user's data, which may be unfinished."""

    __tablename__ = "exports"
    __table_args__ = (Index("exports_of_user", "user_id", "created_at", "id"),)

    task_id: Number
    format: str  # mail/archives/archive_writer.py
    filename: str
    settings: bool = False  # it has more than mail
    size: MaybeNumber = None  # bytes; None until it is finished
    created_at: Moment
    finished_at: MaybeMoment = None
    expires_at: datetime = Field(sa_type=Instant, index=True)


class ExportPiece(Row, table=True):
    """The next bytes of an export: first the messages, then the directory."""

    __tablename__ = "export_pieces"
    __table_args__ = (
        Index("export_pieces_in_order", "export_id", "part", "position", unique=True),
    )

    export_id: int = ref("exports.id", index=False)
    part: Number  # 0 data, 1 directory, 2 end
    position: Number
    size: Number
    blob_id: int = ref("blobs.id", ondelete="RESTRICT")


class ImportArchive(Owned, table=True):
    """An archive that an import reads. It is deleted with the end of the task."""

    __tablename__ = "import_archives"

    task_id: int = Field(sa_type=Big, index=True)
    filename: str
    size: Number
    blob_id: int = ref("blobs.id", ondelete="RESTRICT")
    created_at: Moment
