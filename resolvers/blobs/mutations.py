"""Store, copy and delete objects, and run the garbage collector, for administrators."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import col

from mail.files.upload_removal import (
    RemovedUploads,
    delete_upload_rows_up_to_limit,
    drop_unreferenced_objects,
)
from mail.smtp.spool_file import free_disk_bytes
from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.errors import CorruptBlob, ObjectNameTaken
from models.admin.tasks import Task, TaskKind
from models.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    check_count_from_one_to_limit,
    require_found,
    require_within_limit,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.files.blobs import Upload
from models.store.columns import ColumnRow
from models.store.object_store import BrowsableObjectStore
from models.store.outages import DiskFull, StorageComponent
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import insert_tasks_and_wake_workers
from resolvers.blobs import content, deletion
from resolvers.blobs.content import TARGET_KIND, audit_values
from resolvers.blobs.loaders import StoredBlob, find_blob
from resolvers.blobs.validation import (
    require_admin_path,
    require_blob_path,
    require_expected_digest,
    require_folder_path,
    require_store,
    validated_digest,
)
from resolvers.context import Context
from resolvers.files import uploads

PUT_MUTATION, COPY_MUTATION = "blobPut", "blobCopy"
DELETE_MUTATION, COLLECT_MUTATION = "blobDelete", "blobCollect"


@dataclass(frozen=True, slots=True)
class BlobTarget:
    """The place below `admin/` where an object is stored, and the SHA-256 that it must have."""

    store: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class BlobDeletion:
    """The number of objects that are deleted, at once or by the task."""

    deleted_count: int = 0
    task: Task | None = None


async def put_blob_unless_dry_run(
    ctx: Context, target: BlobTarget, data: bytes | None, upload_id: int | None
) -> StoredBlob | None:
    """Store bytes, or those of an upload, as an object below `admin/`; an existing one is replaced.

    The upload is deleted. Returns None in a dry run. Raises InvalidInput for a wrong path or
    another SHA-256, NotFound for an unknown upload, and Conflict if a folder has the path.
    """
    store = require_store(ctx, target.store)
    require_admin_path(target.path)
    expected_digest = validated_digest(target.sha256)
    if upload_id is None:
        data = data or b""
        max_size = ctx.environment.options.upload_max_size
        text = f"A blob has at most {max_size} bytes."
        require_within_limit(len(data), max_size, text, path=["content"])
        digest = await asyncio.to_thread(content_digest, data)
        require_expected_digest(digest, expected_digest)
        if not ctx.is_dry_run:
            await put_object_or_raise_conflict(store, target.path, data)
        return await _log_and_find_blob(ctx, _put_entry(target, digest), target)
    upload = await require_own_upload(ctx, upload_id, ["content"])
    require_expected_digest(upload.digest, expected_digest)
    if not ctx.is_dry_run:
        async with temporary_file_with_upload(ctx, upload) as path:
            await put_object_or_raise_conflict(store, target.path, path)
    entry = _put_entry(target, upload.digest)
    return await _log_and_find_blob(ctx, entry, target, upload=upload)


async def require_own_upload(ctx: Context, upload_id: int, path: Sequence[str]) -> ColumnRow:
    """Return the row of a complete upload of the viewer. Raises NotFound."""
    row = await ctx.load(uploads.load_own_complete_uploads_by_id, upload_id)
    upload: ColumnRow = require_found(row, str(upload_id), path=path, noun="Upload")
    return upload


@asynccontextmanager
async def temporary_file_with_upload(ctx: Context, upload: ColumnRow) -> AsyncGenerator[Path]:
    """Copy an upload to a temporary file, which exists inside the block.

    Raises CorruptBlob, and the errors of `temporary_file_with_content`.
    """
    chunks = ctx.environment.object_store.stream(upload.blob_name, 0, upload.size)
    async with temporary_file_with_content(ctx, chunks) as received:
        if received.digest != upload.digest:
            raise CorruptBlob(f"The object {upload.blob_name} of an upload is damaged")
        yield received.path


def _put_entry(target: BlobTarget, digest: str) -> NewAuditLogEntry:
    values = {"store": target.store, "path": target.path, "sha256": digest}
    return NewAuditLogEntry(PUT_MUTATION, TARGET_KIND, after=values)


async def copy_blob_unless_dry_run(
    ctx: Context, store_name: str, source_path: str, target: BlobTarget
) -> StoredBlob | None:
    """Copy the content of an object to a path below `admin/`; an existing object is replaced.

    The content is decompressed and verified before it is stored. The owners' security
    logs get an event. Returns None in a dry run. Raises InvalidInput for a wrong path or another
    SHA-256, NotFound if there is no object, and Conflict if a folder has the path.
    """
    require_store(ctx, store_name)
    store = require_store(ctx, target.store, ("toStore",))
    require_blob_path(source_path, ("from",))
    require_admin_path(target.path, ("to",))
    expected_digest = validated_digest(target.sha256)
    if (store_name, source_path) == (target.store, target.path):
        raise InvalidInput(
            "Source and target are the same.", constraint=ValidationConstraint.SAME, path=["to"]
        )
    found = await find_blob(ctx, store_name, source_path)
    source = require_found(found, source_path, path=["from"], noun="Blob")
    if ctx.is_dry_run:
        return None
    (facts,) = await content.log_reads_for_owners_and_load_facts(ctx, [source])
    chunks = content.stream_content(ctx, source, facts, 0, content.content_size(source, facts))
    async with temporary_file_with_content(ctx, chunks) as received:
        require_expected_digest(received.digest, expected_digest)
        await put_object_or_raise_conflict(store, target.path, received.path, ("to",))
    values = {
        "store": store_name,
        "path": source_path,
        "toStore": target.store,
        "to": target.path,
        "sha256": received.digest,
    }
    entry = NewAuditLogEntry(COPY_MUTATION, TARGET_KIND, after=values)
    return await _log_and_find_blob(ctx, entry, target)


@dataclass(frozen=True, slots=True)
class ReceivedContent:
    """Bytes in a temporary file, with their SHA-256 in hex."""

    path: Path
    digest: str


@asynccontextmanager
async def temporary_file_with_content(
    ctx: Context, chunks: AsyncGenerator[bytes]
) -> AsyncGenerator[ReceivedContent]:
    """Write chunks to a temporary file, which exists inside the block, and compute their digest.

    Raises DiskFull before the disk has less free bytes than the setting `disk_reserve`.
    """
    digest = hashlib.sha256()
    folder = Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(prefix="merganser-blob-") as file:
        async with aclosing(chunks):
            async for chunk in chunks:
                if free_disk_bytes(folder) < len(chunk) + ctx.environment.options.disk_reserve:
                    raise DiskFull(StorageComponent.DISK)
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(file.flush)
        yield ReceivedContent(Path(file.name), digest.hexdigest())


async def put_object_or_raise_conflict(
    store: BrowsableObjectStore,
    name: str,
    source: bytes | Path,
    path: Sequence[str] = ("path",),
) -> None:
    """Store bytes. Raises Conflict if a folder has the name, or an object that of a folder."""
    try:
        if isinstance(source, Path):
            await store.put_file(name, source)
        else:
            await store.put(name, source)
    except ObjectNameTaken as problem:
        text = "An object and a folder can't have the same path."
        raise Conflict(text, path=path) from problem


async def _log_and_find_blob(
    ctx: Context, entry: NewAuditLogEntry, target: BlobTarget, *, upload: ColumnRow | None = None
) -> StoredBlob | None:
    """Write a stored object to the audit log, delete the row of its upload, return the object.

    Returns None in a dry run.
    """
    stored = None if ctx.is_dry_run else await find_blob(ctx, target.store, target.path)
    await write_audit_log_and_delete_upload(ctx, entry, upload)
    return stored


async def write_audit_log_and_delete_upload(
    ctx: Context, entry: NewAuditLogEntry, upload: ColumnRow | None
) -> None:
    """Write an entry of the audit log, and delete the upload with the content, if there is one."""
    removed = RemovedUploads()
    async with ctx.write_session(PLATFORM, *([upload.user_id] if upload else [])) as session:
        await audit_log.insert_audit_log_entries(ctx, session, entry)
        if upload is not None:
            is_upload = col(Upload.id) == upload.id
            removed = await ctx.environment.run_in_session(
                session, lambda inner: delete_upload_rows_up_to_limit(inner, is_upload)
            )
    if removed.objects and not ctx.is_in_transaction:  # else the garbage collector removes them
        await drop_unreferenced_objects(ctx.environment, removed.objects)


async def delete_blobs_or_queue_deletion_task(
    ctx: Context, store_name: str, paths: Sequence[str], *, recursive: bool
) -> BlobDeletion:
    """Delete objects, all or none, or with `recursive` queue a task that deletes all below paths.

    Inside a transaction a task deletes them, since the object store is not awaited there. Raises
    InvalidInput for a wrong path, NotFound if there is no object, and Conflict if one is in use.
    """
    store = require_store(ctx, store_name)
    limit = ctx.environment.options.bulk_max_items
    text = f"From 1 to {limit} paths are required."
    check_count_from_one_to_limit(len(paths), limit, text, path=["paths"])
    paths = list(dict.fromkeys(paths))
    for index, path in enumerate(paths):
        check = require_folder_path if recursive else require_blob_path
        check(path, ("paths",), index=index)
    if recursive:
        entries = [_deletion_entry({"store": store_name, "path": path}) for path in paths]
        return BlobDeletion(task=await _queue_deletion(ctx, store_name, paths, entries))
    blobs = await _require_unused_blobs(ctx, store, store_name, paths)
    entries = [_deletion_entry(audit_values(blob)) for blob in blobs]
    if ctx.is_in_transaction:
        columns = {"total_count": len(blobs)}
        task = await _queue_deletion(ctx, store_name, paths, entries, recursive=False, **columns)
        return BlobDeletion(len(blobs), task)
    await audit_log.record_platform_entries(ctx, *entries)
    await store.delete(paths)
    return BlobDeletion(len(blobs))


def _deletion_entry(values: dict[str, Any]) -> NewAuditLogEntry:
    return NewAuditLogEntry(DELETE_MUTATION, TARGET_KIND, before=values)


async def _require_unused_blobs(
    ctx: Context, store: BrowsableObjectStore, store_name: str, paths: Sequence[str]
) -> list[StoredBlob]:
    """Load objects to delete. Raises NotFound for a missing one and Conflict for one in use."""
    blobs = []
    for index, path in enumerate(paths):
        stored = await store.find(path)
        if stored is None:
            raise NotFound(path, path=["paths"], index=index, noun="Blob")
        blobs.append(StoredBlob.of_object(store_name, stored))
    reasons = await deletion.reasons_to_keep(ctx, blobs)
    for index, blob in enumerate(blobs):
        if blob in reasons:
            raise Conflict(reasons[blob], path=["paths"], index=index)
    return blobs


async def _queue_deletion(
    ctx: Context,
    store_name: str,
    paths: Sequence[str],
    entries: Sequence[NewAuditLogEntry],
    *,
    recursive: bool = True,
    **columns: Any,
) -> Task:
    """Insert the task that deletes objects, with its entries of the audit log."""
    order = {"store": store_name, "paths": list(paths), "recursive": recursive}
    return await _insert_task_and_audit_log_entries(
        ctx, deletion.DELETE_TASK_KIND, order, entries, **columns
    )


async def queue_collection(ctx: Context) -> Task:
    """Queue a task that runs the garbage collector now."""
    entry = NewAuditLogEntry(COLLECT_MUTATION, TARGET_KIND)
    return await _insert_task_and_audit_log_entries(ctx, deletion.COLLECT_TASK_KIND, {}, [entry])


async def _insert_task_and_audit_log_entries(
    ctx: Context,
    kind: TaskKind,
    order: dict[str, Any],
    entries: Sequence[NewAuditLogEntry],
    **columns: Any,
) -> Task:
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await insert_tasks_and_wake_workers(ctx, session, kind, [order], **columns)
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
        await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
        return task
