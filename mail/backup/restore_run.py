"""Restore the objects and the database file of a backup into an empty store.

The marks of the object stores are written first, and the database last. So a restore that was
interrupted leaves no database, and can be continued by a run that keeps the objects.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy import exists, func, select
from sqlmodel import col

from mail.backup.errors import BackupError
from mail.backup.manifest import BackupManifest
from mail.backup.object_copy import (
    CONCURRENT_COPIES,
    ObjectTransfer,
    ReportObjects,
    batches,
    gather_or_cancel,
)
from mail.backup.object_list import (
    ListedObject,
    NamedObject,
    SortedEntries,
    iterate_listed_objects,
    iterate_stored_objects,
    read_listed_objects,
)
from mail.backup.target import BackupTarget
from mail.maintenance.restore_mark import read_mark_or_none
from mail.queue import bulk_updates
from mail.queue.delivery_results import OPEN_STATES
from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_names import OWNER_MARK, is_admin_name
from mail.storage.blobs.tiered_store import COLD_NAME, HOT_NAME, browsable_stores_by_name
from models.events.journal import PLATFORM, Stream
from models.queue.tables import QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.object_store import BrowsableObjectStore, ObjectRange, ObjectStoreProtocol
from models.submission.tables import Submission

IS_WAITING = col(QueueEntry.state).in_(OPEN_STATES), col(QueueEntry.held_at).is_(None)
FACT_BY_STORE_NAME = {HOT_NAME: "blobs", COLD_NAME: "cold blobs"}


@dataclass(slots=True)
class RestoredObjects:
    """The counts of restored objects, and the names of those that the backup has lost."""

    copied_count: int = 0
    kept_count: int = 0
    lost_names: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LostChanges:
    """The changes after the backup that the mark in the object store tells of."""

    account_count: int = 0  # streams of the journal
    last_seen_at: str = ""  # time of the mark; empty if there is none


@dataclass(frozen=True, slots=True)
class NewerObjects:
    """The objects that were stored after the backup."""

    count: int = 0
    size: int = 0  # bytes


async def choose_backup(target: BackupTarget, id_: str | None) -> BackupManifest:
    """Return the manifest of a backup, by default of the newest one. Raises BackupError."""
    if id_ is not None:
        return await target.read_manifest(id_)
    ids = await target.list_ids()
    if not ids:
        raise BackupError(f"{target.location} has no complete backup.")
    return await target.read_manifest(ids[-1])


async def claim_object_stores(
    store: ObjectStoreProtocol, manifest: BackupManifest, *, keeps_objects: bool
) -> None:
    """Write the mark of the backed-up store into each object store.

    Raises BackupError if one has objects. With `keeps_objects` it may have those of this store.
    """
    for name, one in browsable_stores_by_name(store).items():
        mark = manifest.identity.object_store_marks.get(FACT_BY_STORE_NAME[name])
        await _require_empty_or_own(one, name, mark, keeps_objects=keeps_objects)
        if mark is not None:
            await one.put(OWNER_MARK, f"{mark}\n".encode())


async def _require_empty_or_own(
    store: BrowsableObjectStore, store_name: str, mark: str | None, *, keeps_objects: bool
) -> None:
    """Raise BackupError unless the store is empty, or has `mark` and its objects are kept."""
    try:
        found_mark = (await store.get(OWNER_MARK)).decode(errors="replace").strip()
    except KeyError:
        found_mark = ""
    has_objects = bool(await store.list_page(ObjectRange("", 1)))
    if not has_objects and found_mark in {"", mark}:
        return
    if found_mark != mark:
        raise BackupError(
            f"The {store_name} object store has objects of another store: empty it, or change its "
            "setting."
        )
    if not keeps_objects:
        raise BackupError(
            f"The {store_name} object store is not empty. It belongs to the backed-up store: use "
            "--keep-objects to copy only what is missing."
        )


async def restore_objects(
    transfer: ObjectTransfer,
    object_list: Path,
    *,
    object_count: int,
    keeps_objects: bool,
    report_objects: ReportObjects,
) -> RestoredObjects:
    """Copy the listed objects, and verify the hash of each.

    With `keeps_objects`, an object that exists with the right size is not copied. A missing or
    damaged object of the backup is recorded, and the others are restored.
    """
    restored, done_count = RestoredObjects(), 0
    slots = asyncio.Semaphore(CONCURRENT_COPIES)

    async def restore_one(listed: ListedObject) -> None:
        async with slots:
            if keeps_objects and await transfer.destination.size(listed.name) == listed.size:
                restored.kept_count += 1
                return
            source = NamedObject(listed.copy_name, listed.size)
            try:
                await transfer.copy(source, listed.name, listed.sha256)
            except (KeyError, CorruptBlob):
                restored.lost_names.append(listed.name)
                return
            restored.copied_count += 1

    for batch in batches(read_listed_objects(object_list)):
        await gather_or_cancel([restore_one(listed) for listed in batch])
        done_count += len(batch)
        report_objects(done_count, object_count)
    return restored


async def count_waiting_unheld_recipients(environment: Environment) -> int:
    """Count the recipients in the queue that are not held. Each may have got its mail already."""
    statement = select(func.count()).select_from(QueueEntry).where(*IS_WAITING)
    return int((await environment.database.read(statement))[0][0])


async def hold_queue(environment: Environment) -> None:
    """Hold all recipients in the queue, so that no server sends to them before their release."""
    is_waiting = exists().where(col(QueueEntry.submission_id) == col(Submission.id), *IS_WAITING)
    statement = select(col(Submission.id), col(Submission.user_id)).where(is_waiting)
    statement = statement.order_by(col(Submission.id)).limit(bulk_updates.MAX_SUBMISSIONS)
    while rows := await environment.database.read(statement):
        submission_ids = [row.id for row in rows]
        stream_ids = {PLATFORM if row.user_id is None else row.user_id for row in rows}
        await environment.run_transaction(
            partial(_hold_submissions, submission_ids=submission_ids), *sorted(stream_ids)
        )


def _hold_submissions(transaction: DatabaseTransaction, submission_ids: Sequence[int]) -> None:
    bulk_updates.hold_submissions(transaction, submission_ids)


async def load_lost_changes(environment: Environment) -> LostChanges:
    """Find what the mark in the object store has of the time after the backup.

    Before a new incarnation, which writes another mark.
    """
    mark = await read_mark_or_none(environment)
    if mark is None:
        return LostChanges()
    statement = select(col(Stream.id), col(Stream.last)).where(
        col(Stream.id).in_(list(mark.streams))
    )
    rows = await environment.database.read(statement)
    account_count = sum(row.last < mark.streams[row.id] for row in rows)
    account_count += len(mark.streams) - len(rows)  # accounts that were created after the backup
    return LostChanges(account_count, mark.at)


async def count_newer_objects(
    environment: Environment, manifest: BackupManifest, object_list: Path
) -> NewerObjects:
    """Count the objects that were stored after the backup, by a list of all objects."""
    began_at = datetime.fromisoformat(manifest.began_at)
    newer = NewerObjects()
    stores = browsable_stores_by_name(store_without_cache(environment.object_store))
    for store in stores.values():
        listed = SortedEntries(iterate_listed_objects(object_list))
        async for stored in iterate_stored_objects(store):
            if is_admin_name(stored.name) or stored.modified_at <= began_at:
                continue
            if await listed.find(stored.name) is None:
                newer = NewerObjects(newer.count + 1, newer.size + stored.size)
    return newer
