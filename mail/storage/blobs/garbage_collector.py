"""Garbage collector: removes blobs without references, and objects that no row names."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete
from sqlmodel import col, select

from models.admin.audits import AuditBlob
from models.events.incarnation import MARK, DroppedObject
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload, UploadPart
from models.files.tables import File, FileShare
from models.runtime.environment import World
from models.spam.quarantine import QuarantineBlob
from models.store.columns import insert_or
from models.store.object_store import Store, Stored
from models.transfer import ExportPiece, ImportArchive

GRACE = timedelta(hours=24)
ROUND = 1000  # rows of one transaction, objects of one batch
REFERENCES = (  # every foreign key to a blob
    col(MessageBlob.blob_id),
    col(SubmissionBlob.blob_id),
    col(AuditBlob.blob_id),
    col(QuarantineBlob.blob_id),
    col(File.blob_id),
    col(FileShare.blob_id),
    col(ExportPiece.blob_id),
    col(ImportArchive.blob_id),
)


@dataclass(frozen=True, slots=True)
class Collected:
    """The number of removed rows and objects, and of their stored bytes."""

    rows: int = 0
    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "Collected") -> "Collected":
        """The sum of both."""
        return Collected(
            self.rows + other.rows, self.objects + other.objects, self.bytes + other.bytes
        )


async def collect(
    world: World,
    store: Store,
    *,
    grace: timedelta = GRACE,
    keep: timedelta = timedelta(0),
    sweep: bool = True,
) -> Collected:
    """Remove blobs that have been unused for `grace_period`.

    Rows are deleted first, in transactions of at most 1,000, and their objects after the
    commit. With `list_objects`, the whole object store is listed to remove objects that no row
    names: those of an interrupted collection or delivery. An object that a row has named is
    kept for `keep_objects_for`, so that a restored database finds it.
    """
    before = world.now() - grace
    collected = Collected()
    reached: int | None = 0
    while reached is not None:
        reached, found = await _round(world, store, before, above=reached, keep=bool(keep))
        collected += found
    if sweep:
        collected += await _sweep(world, store, before, keep=bool(keep))
    return collected + await _remove_dropped(world, store, world.now() - keep)


def drop(connection: Connection, names: Collection[str], at: datetime) -> None:
    """Record that from now on no row names these objects."""
    rows = [{"name": name, "at": at} for name in sorted(names)]
    if rows:
        new = insert_or(connection.dialect.name, DroppedObject).on_conflict_do_nothing()
        connection.execute(new, rows)


async def drop_objects(world: World, names: Collection[str]) -> None:
    """Remove objects that no row names.

    With a restore window they are recorded as dropped, and removed after the window.
    """
    if not names:
        return
    if world.options.restore_window:
        await world.apply(lambda transaction: drop(transaction.connection, names, world.now()))
    else:
        await world.blobs.delete(list(names))


async def _remove_dropped(world: World, store: Store, before: datetime) -> Collected:
    """Remove the objects that were dropped before a time, unless a row names them again."""
    collected, name = Collected(), col(DroppedObject.name)
    while True:
        old = select(name).where(col(DroppedObject.at) <= before).order_by(name).limit(ROUND)
        names = [row.name for row in await world.database.read(old)]
        if not names:
            return collected
        named = await named_objects(world, names)
        useless = [one for one in names if one not in named]
        await store.delete(useless)
        async with world.write() as session:
            gone = delete(DroppedObject).where(name.in_(names))
            await (await session.connection()).execute(gone)
        collected += Collected(objects=len(useless))


async def _round(
    world: World, store: Store, before: datetime, *, above: int, keep: bool
) -> tuple[int | None, Collected]:
    """Remove unused blobs with ids above `after_id`.

    Returns the id after which the next batch begins, or None at the end, and the removed
    garbage.
    """
    # The search is long. It runs outside the transaction, so that no lock waits for it.
    search = select(Blob.id).where(_unused(before), col(Blob.id) > above)
    found = await world.database.read(search.order_by(col(Blob.id)).limit(ROUND))
    candidates = [row.id for row in found]
    if not candidates:
        return None, Collected()
    gone = await _delete_rows(world, candidates, before, keep=keep)
    names = [] if keep else [row.name for row in gone if row.name]
    await store.delete(names)
    collected = Collected(len(gone), len(names), sum(row.stored_size for row in gone))
    return (candidates[-1] if len(candidates) == ROUND else None), collected


def _unused(before: datetime) -> ColumnElement[bool]:
    return and_(
        col(Blob.created_at) < before,
        *(~select(blob_id).where(blob_id == col(Blob.id)).exists() for blob_id in REFERENCES),
    )


async def _delete_rows(
    world: World, ids: Sequence[int], before: datetime, *, keep: bool
) -> Sequence[Row[*tuple[Any, ...]]]:
    """Delete the blobs that are still unused; return their `name` and `stored_size`.

    With `keep_objects`, their objects are recorded as dropped.
    """
    async with world.write() as session:
        # Lock the rows first and check them in a second statement: one statement would not see
        # a reference that was committed while it waited for the lock. A transaction that is
        # about to refer to a blob has its row locked; such a row is skipped.
        lock = select(Blob.id).where(col(Blob.id).in_(ids)).with_for_update(skip_locked=True)
        held = (await session.exec(lock)).all()
        removal = delete(Blob).where(col(Blob.id).in_(held), _unused(before))
        removed = await session.exec(removal.returning(col(Blob.name), col(Blob.stored_size)))
        gone = removed.all()
        if keep:
            names = [row.name for row in gone if row.name]
            connection = await session.connection()
            await connection.run_sync(drop, names, world.now())
        return gone


async def _sweep(world: World, store: Store, before: datetime, *, keep: bool) -> Collected:
    """Remove objects that no row names; with `keep_objects`, only record them as dropped."""
    collected = Collected()
    async for batch in _batches(store, before):
        named = await named_objects(world, [stored.name for stored in batch])
        useless = [stored for stored in batch if stored.name not in named]
        names = [stored.name for stored in useless]
        if keep:
            await _note_dropped(world, names)
            continue
        await store.delete(names)
        size = sum(stored.size for stored in useless)
        collected += Collected(objects=len(useless), bytes=size)
    return collected


async def _note_dropped(world: World, names: Sequence[str]) -> None:
    noted = select(col(DroppedObject.name)).where(col(DroppedObject.name).in_(names))
    known = {row.name for row in await world.database.read(noted)}
    if new := [name for name in names if name not in known]:
        await world.apply(lambda transaction: drop(transaction.connection, new, world.now()))


async def _batches(store: Store, before: datetime) -> AsyncIterator[Sequence[Stored]]:
    """Yield batches of objects that were stored before a time."""
    batch: list[Stored] = []
    async for stored in store.list():
        if stored.modified < before and stored.name != MARK:
            batch.append(stored)
        if len(batch) == ROUND:
            yield batch
            batch = []
    if batch:
        yield batch


async def named_objects(world: World, names: Sequence[str]) -> set[str]:
    """Return those of the object names that a row holds."""
    # Uploads first: an upload can become a blob between two reads, but not the reverse.
    found = set[str]()
    for name in (col(Upload.blob_name), col(UploadPart.name), col(Blob.name)):
        rows = await world.database.read(select(name).where(name.in_(names)))
        found.update(str(row[0]) for row in rows)
    return found
