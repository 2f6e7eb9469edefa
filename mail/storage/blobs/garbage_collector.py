"""Garbage collector: removes blobs without references, and objects that no row names."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, delete
from sqlmodel import col, select

from models.admin.legal_holds import LegalHoldBlob
from models.events.incarnation import MARK_OBJECT_NAME, DroppedObject
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload, UploadPart
from models.files.tables import File, FileShare
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineBlob
from models.store.columns import insert_with_conflict
from models.store.object_store import ObjectStoreProtocol, StoredObject
from models.transfer import ExportPart, ImportArchive

GRACE_PERIOD = timedelta(hours=24)
BATCH_SIZE = 1000  # rows of one transaction, objects of one batch
REFERENCE_COLUMNS = (  # every foreign key to a blob
    col(MessageBlob.blob_id),
    col(SubmissionBlob.blob_id),
    col(LegalHoldBlob.blob_id),
    col(QuarantineBlob.blob_id),
    col(File.blob_id),
    col(FileShare.blob_id),
    col(ExportPart.blob_id),
    col(ImportArchive.blob_id),
)


@dataclass(frozen=True, slots=True)
class CollectedGarbage:
    """The number of removed rows and objects, and of their stored bytes."""

    row_count: int = 0
    object_count: int = 0
    byte_count: int = 0
    blob_count: int = field(default=0, compare=False)  # rows, and objects without a row

    def __add__(self, other: "CollectedGarbage") -> "CollectedGarbage":
        """The sum of both."""
        return CollectedGarbage(
            self.row_count + other.row_count,
            self.object_count + other.object_count,
            self.byte_count + other.byte_count,
            self.blob_count + other.blob_count,
        )


async def collect_garbage(
    environment: Environment,
    store: ObjectStoreProtocol,
    *,
    grace_period: timedelta = GRACE_PERIOD,
    keep_objects_for: timedelta = timedelta(0),
    list_objects: bool = True,
) -> CollectedGarbage:
    """Remove blobs that have been unused for `grace_period`.

    Rows are deleted first, in transactions of at most 1,000, and their objects after the
    commit. With `list_objects`, the whole object store is listed to remove objects that no row
    names: those of an interrupted collection or delivery. An object that a row has named is
    kept for `keep_objects_for`, so that a restored database finds it.
    """
    before = environment.now() - grace_period
    collected = CollectedGarbage()
    reached: int | None = 0
    while reached is not None:
        reached, candidates = await _collect_batch(
            environment, store, before, after_id=reached, keep_objects=bool(keep_objects_for)
        )
        collected += candidates
    if list_objects:
        collected += await _remove_or_record_unnamed_objects(
            environment, store, before, keep_objects=bool(keep_objects_for)
        )
    return collected + await _remove_dropped_objects(
        environment, store, environment.now() - keep_objects_for
    )


def insert_dropped_objects(
    connection: Connection, object_names: Collection[str], dropped_at: datetime
) -> None:
    """Record that from now on no row names these objects."""
    rows = [{"name": name, "at": dropped_at} for name in sorted(object_names)]
    if rows:
        new = insert_with_conflict(connection.dialect.name, DroppedObject).on_conflict_do_nothing()
        connection.execute(new, rows)


async def delete_dropped_objects_now_or_after_window(
    environment: Environment, object_names: Collection[str]
) -> None:
    """Remove objects that no row names.

    With a restore window they are recorded as dropped, and removed after the window.
    """
    if not object_names:
        return
    if environment.options.backup_restore_window:
        await environment.run_transaction(
            lambda transaction: insert_dropped_objects(
                transaction.connection, object_names, environment.now()
            )
        )
    else:
        await environment.object_store.delete(list(object_names))


async def _remove_dropped_objects(
    environment: Environment, store: ObjectStoreProtocol, dropped_before: datetime
) -> CollectedGarbage:
    """Remove the objects that were dropped before a time, unless a row names them again."""
    collected, name = CollectedGarbage(), col(DroppedObject.name)
    while True:
        old = (
            select(name)
            .where(col(DroppedObject.at) <= dropped_before)
            .order_by(name)
            .limit(BATCH_SIZE)
        )
        names = [row.name for row in await environment.database.read(old)]
        if not names:
            return collected
        used_names = await load_object_names_in_use(environment, names)
        useless = [name for name in names if name not in used_names]
        await store.delete(useless)
        async with environment.write_session() as session:
            statement = delete(DroppedObject).where(name.in_(names))
            await (await session.connection()).execute(statement)
        collected += CollectedGarbage(object_count=len(useless))


class _CollectedBatch(NamedTuple):
    """The removed garbage of one batch."""

    next_after_id: int | None  # None after the last batch
    garbage: CollectedGarbage


async def _collect_batch(
    environment: Environment,
    store: ObjectStoreProtocol,
    unused_since: datetime,
    *,
    after_id: int,
    keep_objects: bool,
) -> _CollectedBatch:
    """Remove unused blobs with ids above `after_id`.

    Returns the id after which the next batch begins, or None at the end, and the removed
    garbage.
    """
    # The search is long. It runs outside the transaction, so that no lock waits for it.
    search = select(Blob.id).where(_is_unused(unused_since), col(Blob.id) > after_id)
    rows = await environment.database.read(search.order_by(col(Blob.id)).limit(BATCH_SIZE))
    candidates = [row.id for row in rows]
    if not candidates:
        return _CollectedBatch(None, CollectedGarbage())
    deleted_rows = await _delete_unused_rows_and_record_kept_objects(
        environment, candidates, unused_since, keep_objects=keep_objects
    )
    names = [] if keep_objects else [row.name for row in deleted_rows if row.name]
    await store.delete(names)
    collected = CollectedGarbage(
        len(deleted_rows),
        len(names),
        sum(row.stored_size for row in deleted_rows),
        len(deleted_rows),
    )
    return _CollectedBatch((candidates[-1] if len(candidates) == BATCH_SIZE else None), collected)


def _is_unused(since: datetime) -> ColumnElement[bool]:
    """SQL: the blob was created before `since` and no row refers to it."""
    return and_(
        col(Blob.created_at) < since,
        *(
            ~select(blob_id).where(blob_id == col(Blob.id)).exists()
            for blob_id in REFERENCE_COLUMNS
        ),
    )


async def _delete_unused_rows_and_record_kept_objects(
    environment: Environment, blob_ids: Sequence[int], unused_since: datetime, *, keep_objects: bool
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Delete the blobs that are still unused; return their `name` and `stored_size`.

    With `keep_objects`, their objects are recorded as dropped.
    """
    async with environment.write_session() as session:
        # Lock the rows first and check them in a second statement: one statement would not see
        # a reference that was committed while it waited for the lock. A transaction that is
        # about to refer to a blob has its row locked; such a row is skipped.
        lock = select(Blob.id).where(col(Blob.id).in_(blob_ids)).with_for_update(skip_locked=True)
        locked_rows = (await session.exec(lock)).all()
        removal = delete(Blob).where(col(Blob.id).in_(locked_rows), _is_unused(unused_since))
        removed = await session.exec(removal.returning(col(Blob.name), col(Blob.stored_size)))
        deleted_rows = removed.all()
        if keep_objects:
            names = [row.name for row in deleted_rows if row.name]
            connection = await session.connection()
            await connection.run_sync(insert_dropped_objects, names, environment.now())
        return deleted_rows


async def _remove_or_record_unnamed_objects(
    environment: Environment,
    store: ObjectStoreProtocol,
    stored_before: datetime,
    *,
    keep_objects: bool,
) -> CollectedGarbage:
    """Remove objects that no row names; with `keep_objects`, only record them as dropped."""
    collected = CollectedGarbage()
    async for batch in _list_object_batches(store, stored_before):
        used_names = await load_object_names_in_use(environment, [stored.name for stored in batch])
        useless = [stored for stored in batch if stored.name not in used_names]
        names = [stored.name for stored in useless]
        if keep_objects:
            await _record_dropped_objects(environment, names)
            continue
        await store.delete(names)
        size = sum(stored.size for stored in useless)
        collected += CollectedGarbage(0, len(useless), size, len(useless))
    return collected


async def _record_dropped_objects(environment: Environment, object_names: Sequence[str]) -> None:
    known_statement = select(col(DroppedObject.name)).where(
        col(DroppedObject.name).in_(object_names)
    )
    noted_names = {row.name for row in await environment.database.read(known_statement)}
    if new := [name for name in object_names if name not in noted_names]:
        await environment.run_transaction(
            lambda transaction: insert_dropped_objects(
                transaction.connection, new, environment.now()
            )
        )


async def _list_object_batches(
    store: ObjectStoreProtocol, stored_before: datetime
) -> AsyncIterator[Sequence[StoredObject]]:
    """Yield batches of objects that were stored before a time."""
    batch: list[StoredObject] = []
    async for stored in store.list():
        if stored.modified_at < stored_before and stored.name != MARK_OBJECT_NAME:
            batch.append(stored)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


async def load_object_names_in_use(
    environment: Environment, object_names: Sequence[str]
) -> set[str]:
    """Return those of the object names that a row holds."""
    # Uploads first: an upload can become a blob between two reads, but not the reverse.
    used_names = set[str]()
    for name in (col(Upload.blob_name), col(UploadPart.name), col(Blob.name)):
        rows = await environment.database.read(select(name).where(name.in_(object_names)))
        used_names.update(str(row[0]) for row in rows)
    return used_names
