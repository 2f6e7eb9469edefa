"""Restore the objects and the database file of a backup into an empty store.

The marks of the object stores are written first, and the database last. So a restore that was
interrupted leaves no database, and can be continued by a run that keeps the objects.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, func, select, text, update
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
from mail.queue.delivery_results import OPEN_STATES
from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_names import OWNER_MARK, is_admin_name
from mail.storage.blobs.tiered_store import COLD_NAME, HOT_NAME, browsable_stores_by_name
from models.events.journal import Stream
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.runtime.server_processes import ServerProcess
from models.store.columns import core_table
from models.store.object_store import BrowsableObjectStore, ObjectRange, ObjectStoreProtocol

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


def complete_database(connection: Connection, revision: str, *, holds_queue: bool) -> None:
    """Change a restored database so that a server can use it; no process uses it yet.

    It names no running process. With `holds_queue`, all recipients in the queue are held. No
    journal entries are written: the new incarnation lets all clients read their state again.
    """
    connection.execute(delete(core_table(ServerProcess)))
    if holds_queue:
        entries = core_table(QueueEntry)
        held = update(entries).where(
            entries.c.state.in_(sorted(OPEN_STATES)), entries.c.held_at.is_(None)
        )
        connection.execute(held.values(held_at=datetime.now(UTC), ready_at=None))
    connection.execute(text("DELETE FROM alembic_version"))
    row = {"revision": revision}
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:revision)"), row)


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
