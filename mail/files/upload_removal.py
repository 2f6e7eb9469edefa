"""Removal of uploads: their rows, the rows of their parts, and the objects of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, delete, select
from sqlmodel import col

from mail.files.upload_parts import delete_part_rows
from mail.storage.blobs.garbage_collector import delete_dropped_objects_now_or_after_window
from models.files.blobs import Blob, Upload
from models.runtime.environment import DatabaseTransaction, Environment

MAX_UPLOADS_PER_TRANSACTION = 1000  # rows that one transaction deletes


@dataclass(frozen=True, slots=True)
class RemovedUploads:
    """The number of deleted uploads, and the objects that their rows named."""

    count: int = 0
    objects: list[str] = field(default_factory=list)


def delete_upload_rows_up_to_limit(
    transaction: DatabaseTransaction, condition: ColumnElement[bool], *, skip_locked: bool = False
) -> RemovedUploads:
    """Delete at most 1,000 uploads with their parts.

    Call `drop_unreferenced_objects` after the commit. The rows are locked first, in the order of
    their ids: then no request adds a part.
    """
    statement = select(col(Upload.id), col(Upload.blob_name)).where(condition)
    statement = (
        statement.order_by(col(Upload.id))
        .limit(MAX_UPLOADS_PER_TRANSACTION)
        .with_for_update(skip_locked=skip_locked)
    )
    rows = transaction.connection.execute(statement).all()
    ids = [row.id for row in rows]
    objects = [row.blob_name for row in rows if row.blob_name is not None]
    if ids:
        objects += delete_part_rows(transaction, ids)
        transaction.connection.execute(delete(Upload).where(col(Upload.id).in_(ids)))
    return RemovedUploads(len(ids), objects)


async def delete_expired_uploads(environment: Environment) -> int:
    """Delete the expired uploads, and return their number."""
    expired, count = col(Upload.expires_at) <= environment.now(), 0
    while True:
        deleted_rows = await environment.run_transaction(
            lambda turn: delete_upload_rows_up_to_limit(turn, expired, skip_locked=True)
        )
        await drop_unreferenced_objects(environment, deleted_rows.objects)
        count += deleted_rows.count
        if deleted_rows.count < MAX_UPLOADS_PER_TRANSACTION:
            return count


async def drop_unreferenced_objects(environment: Environment, names: Sequence[str]) -> None:
    """Delete the objects of deleted uploads, except objects that became blobs."""
    if not names:
        return
    referenced_names = select(col(Blob.name)).where(col(Blob.name).in_(names))
    used = {row.name for row in await environment.database.read(referenced_names)}
    await delete_dropped_objects_now_or_after_window(
        environment, [name for name in names if name not in used]
    )
